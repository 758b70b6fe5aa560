#!/bin/sh
# Builds the library with AddressSanitizer and UndefinedBehaviorSanitizer and runs the tests of the
# run time on it: the first read or write outside a buffer, or undefined step, ends with its line.
# Takes minutes of compilation, so it is not part of `make test`. Run from the repository root with
# cmake, ninja and pytest on the PATH. Arguments go to pytest.
set -eu
cmake -S . -B build/sanitize -G Ninja -DSUBTONE_SANITIZE=ON
cmake --build build/sanitize
# Python itself is not instrumented, so the run times of the sanitizers come first; what Python
# leaves allocated at its end is no leak of ours. An arena that no memory holds would end the process. An emulator
# takes no library of this machine; its programs have guard pages instead. What a process of sanitizers takes of memory
# is not what a test may hold it to.
compiler=${CXX:-c++}
LD_PRELOAD="$($compiler -print-file-name=libasan.so) $($compiler -print-file-name=libubsan.so)" \
ASAN_OPTIONS=detect_leaks=0 SUBTONE_LIBRARY="$PWD/build/sanitize/libsubtone.so" \
  python -m pytest tests/runtime tests/bench/test_bounds.py --ignore tests/runtime/test_aarch64.py \
    -k "not larger_than_any_memory and not as_its_packed_weights and not processor_without_avx" "$@"
