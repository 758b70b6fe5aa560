#!/bin/sh
# Builds the library with its scalar integer kernels compiled for a machine that has no floating-point registers
# (-mgeneral-regs-only: a float in them is an error of the compiler), and runs the tests of integer-only programs on
# it: the same integers, bit for bit. Then the same on aarch64, by its cross compiler and emulator (Debian:
# g++-aarch64-linux-gnu, qemu-user), which the second line of tests needs and `make test` has too. Run from the
# repository root with cmake, ninja and pytest on the PATH. Arguments go to pytest.
set -eu
cmake -S . -B build/no-floats -G Ninja -DSUBTONE_NO_FLOATS=ON
cmake --build build/no-floats
SUBTONE_LIBRARY="$PWD/build/no-floats/libsubtone.so" SUBTONE_ISA=scalar \
  python -m pytest tests/runtime/test_integers.py tests/runtime/test_native_integer_sequences.py "$@"
python -m pytest tests/runtime/test_aarch64.py "$@"
