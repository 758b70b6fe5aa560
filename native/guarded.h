// The exceptions that C++ itself throws as statuses, for functions of the C ABI.
#ifndef SUBTONE_GUARDED_H
#define SUBTONE_GUARDED_H

#include <new>
#include <system_error>

#include "subtone.h"

namespace subtone {

// What `body` returns, a subtone_status.
template <typename Body>
int32_t guarded(const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return SUBTONE_MEMORY;
  } catch (const std::system_error&) {
    return SUBTONE_THREADS;
  }
}

}  // namespace subtone
#endif
