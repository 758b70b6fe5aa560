/* The contract of the native run time: a plain C ABI, no Python, no torch, no JSON.
 *
 * A program is a list of ops over float32 matrices (frames, width), rows contiguous. docs/numerics.md
 * defines every operation and src/subtone/runtime/ops.py executes that definition; this library gives
 * the same bits. With r() one rounding to float32 (nearest, ties to even) and sums taken in the order
 * in which they are written:
 *
 *   conv1d, activation_bits = b >= 2  (kernel 1, stride 1, padding 0, groups 1; integer product)
 *     limit = 2^(b-1) - 1,  a_t = max_k |x[t,k]|;  a_t < 2^-100: q = 0, s_t = 0; otherwise
 *     i_t = r(limit / a_t),  s_t = r(a_t / limit),  q[t,k] = floor(r(r(x[t,k] * i_t) + 0.5))
 *     L[n,k] = levels[codes[n,k]],  for g = 0 .. scale_groups - 1, k over the columns of group g:
 *       S = sum_k L[n,k] q[t,k],  Q = sum_k q[t,k]                    (exact in int32)
 *       total = r(total + r(r(r(S) - r(zero_point[n,g] * r(Q))) * scale[n,g])),  total from +0
 *     v = r(total * s_t)
 *   conv1d, activation_bits = 0  (float; groups 1, or as many as inputs: depthwise)
 *     v = sum over taps j, within a tap over inputs c, both ascending, from +0, of
 *         r(x[t * stride + j * dilation - padding, c] * weight[n,c,j]),  x = 0 beyond both ends
 *   conv1d, then:  v = r(v * gain[n]) if gain;  v = r(v + bias[n]) if bias;  v > 0 ? v : 0 if relu
 *   affine:        v = r(r(x * gain[n]) + bias[n]),  then relu
 *   add:           v = r(x + other),                 then relu
 *   relu:          v = x > 0 ? x : 0
 *   clip:          v = x > low ? x : low;  v < high ? v : high           (NaN gives low)
 *
 * x and all constants are finite; the caller's floating-point mode is the IEEE default (no
 * flush-to-zero). Other values give unspecified numbers, never a read or write outside the buffers.
 *
 * The bits depend neither on the instruction set nor on the number of threads. One call at a time
 * per engine. Every function returns a subtone_status unless it says otherwise. */
#ifndef SUBTONE_H
#define SUBTONE_H

#include <stdint.h>

#define SUBTONE_API __attribute__((visibility("default")))
#define SUBTONE_ABI 2 /* raised with every change of this header */
#define SUBTONE_MAX_THREADS 256
#define SUBTONE_MAX_SIZE (1 << 24)              /* of a width, kernel, stride, dilation, padding */
#define SUBTONE_MAX_FRAMES (INT64_C(1) << 31)   /* of one value */
#define SUBTONE_MAX_INTEGER_INPUTS 65535        /* 128 * 127 * 65535 < 2^30 */

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  SUBTONE_OK = 0,
  SUBTONE_NULL = 1,    /* a pointer that is needed is null */
  SUBTONE_SIZE = 2,    /* a size is zero, negative, beyond its limit, or does not fit another */
  SUBTONE_VALUE = 3,   /* an op names a value that does not exist, or is not written before it */
  SUBTONE_PLAN = 4,    /* frames, offsets or the arena do not fit the program */
  SUBTONE_ISA = 5,     /* the instruction set is unknown or absent on this machine */
  SUBTONE_MEMORY = 6,  /* out of memory */
  SUBTONE_THREADS = 7, /* the operating system starts no more threads */
  SUBTONE_FORKED = 8,  /* the engine was made before this process was forked */
  SUBTONE_RANGE = 9    /* the ends of a clip are not finite, or do not ascend */
} subtone_status;

typedef enum { SUBTONE_CONV1D = 0, SUBTONE_AFFINE = 1, SUBTONE_ADD = 2, SUBTONE_RELU = 3, SUBTONE_CLIP = 4 } subtone_kind;

/* One op. Pointers are read during subtone_append only. Widths are those of its values. */
typedef struct {
  int32_t kind;
  int32_t relu;
  int32_t input, other, output; /* values; `other` of an add only */
  int32_t activation_bits;      /* conv1d: 0, or 2..8 */
  int64_t kernel, stride, dilation, padding, groups;
  int64_t scale_groups;    /* integer product: columns of scale and zero_point; divides the inputs */
  float low, high;         /* clip */
  const float* weight;     /* float product: (out, in / groups, kernel) */
  const uint8_t* codes;    /* integer product: (out, in) */
  const int8_t* levels;    /* integer product: 256 levels, indexed by a code */
  const float* scale;      /* integer product: (out, scale_groups) */
  const float* zero_point; /* the same shape, in the units of `levels` */
  const float* gain;       /* (out); may be null in conv1d */
  const float* bias;       /* (out); may be null in conv1d */
} subtone_op;

typedef struct subtone_engine subtone_engine;

/* SUBTONE_ABI of the built library (not a status). */
SUBTONE_API int32_t subtone_abi(void);

/* What a status means, in words; never null (not a status). */
SUBTONE_API const char* subtone_status_text(int32_t status);

/* Number of instruction sets this machine has kernels for, best first (not a status); the first
 * `capacity` names are written to `names`. */
SUBTONE_API int32_t subtone_isas(const char** names, int32_t capacity);

/* An engine without ops. `widths[v]` is the width of value v; `input` and `output` (two different
 * values) live with the caller, the others in the engine's arena. `threads` >= 1, the caller's own
 * thread included; the others sleep between runs. */
SUBTONE_API int32_t subtone_create(const char* isa, int32_t threads, const int64_t* widths,
                                   int32_t num_values, int32_t input, int32_t output,
                                   subtone_engine** engine);

/* Adds an op behind the others and packs its constants for the kernels; keeps no pointer to them.
 * After an error the engine is as before. */
SUBTONE_API int32_t subtone_append(subtone_engine* engine, const subtone_op* op);

/* Makes the arena at least `arena_bytes` large. The only call that allocates after the last append. */
SUBTONE_API int32_t subtone_reserve(subtone_engine* engine, int64_t arena_bytes);

/* Runs all ops. `frames[v]` of every value as the ops imply them; `offsets[v]`, a multiple of 64, is
 * where value v lies in the arena (ignored for input and output). An op's output overlaps none of
 * its inputs. x: (frames[input], width) in, y: (frames[output], width) out. */
SUBTONE_API int32_t subtone_run(subtone_engine* engine, const int64_t* frames, const int64_t* offsets,
                                const float* x, float* y);

/* Ends the engine and its threads; null is allowed. */
SUBTONE_API void subtone_destroy(subtone_engine* engine);

#ifdef __cplusplus
}
#endif
#endif
