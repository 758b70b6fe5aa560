// What a bound is measured with: reading memory, and int8 products on registers, as fast as one thread of this machine
// can. No op calls these; `subtone bench kernels` does, from as many threads as it measures.
#include <cstring>

#include "subtone.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kWord = 8;  // bytes
constexpr int64_t kChains = 12;  // of products that wait for nothing but themselves: two a cycle, five cycles each

uint64_t word_at(const uint8_t* from) {
  uint64_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

uint64_t read_words(const uint8_t* data, int64_t num_bytes) {
  uint64_t sums[4] = {};
  int64_t at = 0;
  for (; at + 4 * kWord <= num_bytes; at += 4 * kWord)
    for (int lane = 0; lane < 4; ++lane) sums[lane] += word_at(data + at + lane * kWord);
  for (; at < num_bytes; at += kWord) sums[0] += word_at(data + at);
  return sums[0] + sums[1] + sums[2] + sums[3];
}

// The same int8 products as a loop over arrays in the first cache, for machines without the instructions below.
int64_t multiply_arrays(int64_t rounds) {
  constexpr int64_t kSize = 4096;
  static int8_t left[kSize], right[kSize];
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" ::"r"(left), "r"(right) : "memory");  // they may have been written
    int32_t sum = 0;
    for (int64_t i = 0; i < kSize; ++i) sum += static_cast<int32_t>(left[i]) * right[i];
    asm volatile("" ::"r"(sum));
  }
  return rounds * kSize;
}

#if defined(__x86_64__)

__attribute__((target("avx512f"))) uint64_t read_vectors(const uint8_t* data, int64_t num_bytes) {
  constexpr int kVectors = 8;
  __m512i sums[kVectors];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  int64_t at = 0;
  for (; at + 64 * kVectors <= num_bytes; at += 64 * kVectors)
    for (int i = 0; i < kVectors; ++i)
      sums[i] = _mm512_add_epi64(sums[i], _mm512_loadu_si512(data + at + 64 * i));
  for (int i = 1; i < kVectors; ++i) sums[0] = _mm512_add_epi64(sums[0], sums[i]);
  alignas(64) uint64_t words[8];
  _mm512_store_si512(words, sums[0]);
  uint64_t total = read_words(data + at, num_bytes - at);
  for (uint64_t word : words) total += word;
  return total;
}

__attribute__((target("avx512f,avx512vnni"))) int64_t multiply_vnni(int64_t rounds) {
  __m512i sums[kChains];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  __m512i left = _mm512_set1_epi8(1), right = _mm512_set1_epi8(2);
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+v"(left), "+v"(right));  // not known to be the same in every round
    for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, left, right);
  }
  for (__m512i& sum : sums) asm volatile("" ::"v"(sum));
  return rounds * kChains * 64;
}

// Without VNNI the exact way is by 16-bit factors: maddubs saturates.
__attribute__((target("avx2"))) int64_t multiply_avx2(int64_t rounds) {
  __m256i sums[kChains];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  __m256i left = _mm256_set1_epi16(1), right = _mm256_set1_epi16(2);
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+x"(left), "+x"(right));
    for (__m256i& sum : sums) sum = _mm256_add_epi32(sum, _mm256_madd_epi16(left, right));
  }
  for (__m256i& sum : sums) asm volatile("" ::"x"(sum));
  return rounds * kChains * 16;
}

uint64_t read_all(const uint8_t* data, int64_t num_bytes) {
  return __builtin_cpu_supports("avx512f") ? read_vectors(data, num_bytes) : read_words(data, num_bytes);
}

int64_t multiply(int64_t rounds) {
  if (__builtin_cpu_supports("avx512vnni")) return multiply_vnni(rounds);
  return __builtin_cpu_supports("avx2") ? multiply_avx2(rounds) : multiply_arrays(rounds);
}

#else

uint64_t read_all(const uint8_t* data, int64_t num_bytes) { return read_words(data, num_bytes); }
int64_t multiply(int64_t rounds) { return multiply_arrays(rounds); }

#endif

}  // namespace

extern "C" {

const char* subtone_compiler(void) {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "GCC " __VERSION__;
#endif
}

int32_t subtone_measure_read(const void* data, int64_t num_bytes, int64_t repeats, uint64_t* sum) {
  if (!data || !sum) return SUBTONE_NULL;
  if (num_bytes < kWord || num_bytes % kWord || repeats < 1) return SUBTONE_SIZE;
  uint64_t total = 0;
  for (int64_t repeat = 0; repeat < repeats; ++repeat) {
    total += read_all(static_cast<const uint8_t*>(data), num_bytes);
    asm volatile("" ::"r"(data) : "memory");  // nor is what was read known the next time
  }
  *sum = total;
  return SUBTONE_OK;
}

int32_t subtone_measure_int8(int64_t rounds, int64_t* products) {
  if (!products) return SUBTONE_NULL;
  if (rounds < 1 || rounds > INT64_MAX / 4096) return SUBTONE_SIZE;
  *products = multiply(rounds);
  return SUBTONE_OK;
}

}  // extern "C"
