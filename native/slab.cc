#include "slab.h"

#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace subtone {
#if !defined(SUBTONE_SANITIZE)
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
// Of addresses: what is not written takes no memory, so that a layer which does not fit behind the one before it leaves
// none unused but the rest of a page.
constexpr int64_t kChunk = int64_t{64} << 20;

// Before anything is written there: only then does the first touch of a page get a huge one.
void ask_for_huge_pages(uint8_t* first, int64_t count) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  madvise(first, static_cast<size_t>(count), MADV_HUGEPAGE);  // advice: what becomes of it changes no result
#else
  (void)first;
  (void)count;
#endif
}

}  // namespace
#endif

const uint8_t* Slab::keep(const void* bytes, int64_t count) {
#if defined(SUBTONE_SANITIZE)
  chunks_.push_back(Buffer<uint8_t>(count));  // each by itself, so that a read beyond its end is seen
  used_ = 0;
  if (count > 0) std::memcpy(chunks_.back().data(), bytes, static_cast<size_t>(count));
  return chunks_.back().data();
#else
  if (chunks_.empty() || chunks_.back().size() - used_ < count) {
    const bool is_small = chunks_.empty() && count <= kHugePage;
    const int64_t size = is_small ? kHugePage : count < kChunk ? kChunk : round_up(count, kHugePage);
    chunks_.push_back(Buffer<uint8_t>::uninitialized(size, is_small ? kAlignment : kHugePage));
    if (!is_small) ask_for_huge_pages(chunks_.back().data(), size);
    used_ = 0;
  }
  uint8_t* to = chunks_.back().data() + used_;
  if (count > 0) std::memcpy(to, bytes, static_cast<size_t>(count));
  used_ += round_up(count, kAlignment);
  return to;
#endif
}

void CodedWeight::settle(Slab* slab) {
  if (!exists()) return;
  coded.blocks = slab->keep(blocks.data(), blocks.size());
  blocks = Buffer<uint8_t>();
}

void PackedWeight::settle(Slab* slab) {
  codes.settle(slab);
  if (!is_integer) return;
  product.panels = slab->keep(levels.data(), levels.size());
  levels = Buffer<uint8_t>();
}

void PackedIntegers::settle(Slab* slab) {
  if (panels.size() == 0) return;
  const int8_t* kept = reinterpret_cast<const int8_t*>(slab->keep(panels.data(), panels.size()));
  const auto move = [&](IntegerProduct* product) { product->panels = kept + (product->panels - panels.data()); };
  for (IntegerProduct& product : products) move(&product);
  if (depthwise.product.panels) move(&depthwise.product);
  if (image_depthwise.product.panels) move(&image_depthwise.product);
  panels = Buffer<int8_t>();
}

}  // namespace subtone
