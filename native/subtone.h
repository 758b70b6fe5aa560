/* The contract of the native run time: a plain C ABI, no Python, no torch, no JSON.
 *
 * A program is a list of ops over float32 matrices (rows, width), rows contiguous. docs/numerics.md
 * defines every operation and src/subtone/runtime/{ops,sequence_ops,products,functions,integer_*,fixed_point*}.py execute that
 * definition; this library gives the same bits. With r() one rounding to float32 (nearest, ties to even)
 * and sums taken in the order in which they are written:
 *
 *   product of levels q[t,k] (int8) with scale s_t by a weight, L[n,k] = levels[codes[n,k]]:
 *     for g = 0 .. scale_groups - 1, k over the columns of group g:
 *       S = sum_k L[n,k] q[t,k],  Q = sum_k q[t,k]                    (exact in int32)
 *       total = r(total + r(r(r(S) - r(zero_point[n,g] * r(Q))) * scale[n,g])),  total from +0
 *     v = r(total * s_t)
 *   conv1d, activation_bits = b >= 2  (kernel 1, stride 1, no padding, groups 1; integer product)
 *     limit = 2^(b-1) - 1,  a_t = max_k |x[t,k]|;  a_t < 2^-100: q = 0, s_t = 0; otherwise
 *     i_t = r(limit / a_t),  s_t = r(a_t / limit),  q[t,k] = floor(r(r(x[t,k] * i_t) + 0.5))
 *   conv1d, activation_bits = 0  (float; groups divide inputs and outputs)
 *     v = sum over taps j, within a tap over the inputs c of the output's group, both ascending, from +0, of
 *         r(x[t * stride + j * dilation - padding, c] * weight[n,c,j]),  x = 0 in front of the first row
 *         and behind the last
 *   conv1d, then:  v = r(v * gain[n]) if gain;  v = r(v + bias[n]) if bias;  v > 0 ? v : 0 if relu
 *   conv2d:        x[t, c, f] at column c * features + f;  v[t, n, f] = sum over taps j in time, within those over
 *                  taps i in features, within those over channels c of the group, all ascending, from +0, of
 *                  r(x[t * stride + j - padding, c, f * feature_stride + i - feature_padding] * weight[n,c,j,i]);
 *                  then bias[n] and relu as above; out at column n * features_out + f
 *   stack:         row t is rows t * count .. t * count + count - 1 side by side
 *   affine:        v = r(r(x * gain[n]) + bias[n]),  then relu
 *   add:           v = r(x + other),                 then relu
 *   multiply:      v = r(x * other)
 *   scale:         v = r(x * factor)                 (factor in `low`)
 *   relu:          v = x > 0 ? x : 0
 *   clip:          v = x > low ? x : low;  v < high ? v : high           (NaN gives low)
 *   function:      `function` of subtone_function, in the steps of functions.py
 *   glu:           v = r(x[n] * sigmoid(x[n + width / 2]))
 *   layer_norm:    normalized(x[t,:], low) of functions.py, then gain and bias (either may be null)
 *   channel_norm:  normalized(x[:,n], low) over all rows, then gain and bias
 *   concat:        x and other side by side
 *   columns:       columns first .. first + width(output) - 1 of x
 *   embedding:     row x[t,0] of weight (rows, width(output)), clipped to 0 .. rows - 1
 *   attention:     as sequence_ops.py: query `input`, key `other`, value `third`, positions `fourth` (-1: none, or
 *                  a table in `positions`)
 *   lstm:          as sequence_ops.py: gates `input`; h `output`, c `cell`; recurrent weight and bias. Integer: h at
 *                  the static scale 1 / limit: q = clip(floor(r(r(h * r(1 / r(1 / limit))) + 0.5)), -limit, limit),
 *                  s = r(1 / limit)
 *   switched_lstm: the same, `other` the small gates, `third` the gate; small_* the small recurrent weight
 *
 *   sinusoids:     as sinusoid_table of sequence_ops.py, in float64, from `rotation`
 *
 * An integer-only program holds no op but stack, concat, columns and the following, and its items, also those of
 * inputs, output and state, are int32 in the place of floats. clip(total) = (total + 2^(shift-1)) >> shift, rounded down,
 * then not below `low` and not above `high`; totals in 64 bits:
 *   integer conv1d, conv2d:  with L and x of row n and the tap's row as in conv1d and conv2d, g over the groups of columns,
 *                  S = sum of L x and Q = sum of x over the columns of g (exact in int32),
 *                  y = clip(sum_g (multiplier[n,g] S + correction[n,g] Q) + offset[n]) with shifts[n]
 *   integer add:       y = clip(left_multiplier * x + right_multiplier * other)
 *   integer multiply:  y = clip(left_multiplier * (x * other)), the inner product in int32
 *   rescale:           y = clip(left_multiplier * x)
 *   integer affine:    y = clip(multiplier[n] * x + offset[n]) with shifts[n]
 *   integer function:  y = clip(left_multiplier * f(x)), x in units of 2^-fraction_bits and f in the steps of
 *                      fixed_point.py; of silu and gelu the product of x and a sigmoid in units of 2^-15, not rounded
 *   integer glu:       y = clip(left_multiplier * (x[n] * sigmoid(x[n + width / 2])))
 *   integer layer_norm:  y = clip(normalize(x[t,:], epsilon) * multiplier[n] + offset[n]), normalize of fixed_point_rows.py
 *   integer embedding: i = x[t,0] clipped to 0 .. rows - 1;
 *                      y = clip(multiplier[i,g] * L[i,n] + correction[i,g]) with shifts[i]
 *   integer attention: score = (content_multiplier * ((q + content_bias) . k) + position_multiplier * ((q + position_bias)
 *                      . p) + 2^(score_shift-1)) >> score_shift, within int32, both products in int32, in units of 2^-16;
 *                      with w its softmax_weights of fixed_point_rows.py over the rows seen (2^-22),
 *                      y = clip(left_multiplier * sum_s w_s v_s), the sum in int32; all four int8
 *   integer sinusoids: as sinusoids of fixed_point_rows.py, within low .. high
 *   integer lstm:      gates = x * 2^(16 - fraction_bits) + clip(W h) of an integer product, within int32;
 *                      c = (sigmoid(f) c + 2 (sigmoid(i) tanh(g)) + 2^14) >> 15, within int32;
 *                      h = (high (sigmoid(o) tanh(c)) + 2^29) >> 30, within -high .. high
 * A program that could overflow, or x beyond int8 (uint8) where a product reads it, gives unspecified numbers
 * (all sums wrap), never anything else.
 *
 * x and all constants are finite; the caller's floating-point mode is the IEEE default (no
 * flush-to-zero). Other values give unspecified numbers, never a read or write outside the buffers.
 *
 * The bits depend neither on the instruction set nor on the number of threads, nor on how rows are
 * divided into runs. One call at a time per engine. Every function returns a subtone_status unless it
 * says otherwise. */
#ifndef SUBTONE_H
#define SUBTONE_H

#include <stdint.h>

#define SUBTONE_API __attribute__((visibility("default")))
#define SUBTONE_ABI 7 /* raised with every change of this header */
#define SUBTONE_MAX_THREADS 256
#define SUBTONE_MAX_SIZE (1 << 24)              /* of a width, kernel, stride, dilation, padding */
#define SUBTONE_MAX_FRAMES (INT64_C(1) << 31)   /* of one value */
#define SUBTONE_MAX_INTEGER_INPUTS 65535        /* 128 * 127 * 65535 < 2^30 */
#define SUBTONE_MAX_COLUMNS 131071              /* of an integer-only product: 128 * 128 * 131071 < 2^31 */
#define SUBTONE_MAX_SHIFT 62
#define SUBTONE_MAX_FRACTION_BITS 16
#define SUBTONE_MAX_NORM_COLUMNS 32768          /* of an integer norm: sums of squares of 16 bits within 2^62 */

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  SUBTONE_OK = 0,
  SUBTONE_NULL = 1,    /* a pointer that is needed is null */
  SUBTONE_SIZE = 2,    /* a size is zero, negative, beyond its limit, or does not fit another */
  SUBTONE_VALUE = 3,   /* an op names a value that does not exist, or is not written before it */
  SUBTONE_PLAN = 4,    /* rows, offsets, the arena or the state do not fit the program */
  SUBTONE_ISA = 5,     /* the instruction set is unknown or absent on this machine */
  SUBTONE_MEMORY = 6,  /* out of memory */
  SUBTONE_THREADS = 7, /* the operating system starts no more threads */
  SUBTONE_FORKED = 8,  /* the engine was made before this process was forked */
  SUBTONE_RANGE = 9    /* a number is not finite, an epsilon not above 0, a clip's ends do not ascend, a shift not 1 to 62,
                      * fraction_bits not 0 to 16 */
} subtone_status;

typedef enum {
  SUBTONE_CONV1D = 0,
  SUBTONE_AFFINE = 1,
  SUBTONE_ADD = 2,
  SUBTONE_RELU = 3,
  SUBTONE_CLIP = 4,
  SUBTONE_CONV2D = 5,
  SUBTONE_STACK = 6,
  SUBTONE_MULTIPLY = 7,
  SUBTONE_SCALE = 8,
  SUBTONE_FUNCTION_OP = 9,
  SUBTONE_GLU = 10,
  SUBTONE_LAYER_NORM = 11,
  SUBTONE_CONCAT = 12,
  SUBTONE_COLUMNS = 13,
  SUBTONE_EMBEDDING = 14,
  SUBTONE_ATTENTION = 15,
  SUBTONE_CHANNEL_NORM = 16,
  SUBTONE_LSTM = 17,
  SUBTONE_SWITCHED_LSTM = 18,
  SUBTONE_SINUSOIDS = 19,
  SUBTONE_INTEGER_CONV1D = 20,
  SUBTONE_INTEGER_CONV2D = 21,
  SUBTONE_INTEGER_ADD = 22,
  SUBTONE_INTEGER_MULTIPLY = 23,
  SUBTONE_RESCALE = 24,
  SUBTONE_INTEGER_AFFINE = 25,
  SUBTONE_INTEGER_FUNCTION = 26,
  SUBTONE_INTEGER_GLU = 27,
  SUBTONE_INTEGER_LAYER_NORM = 28,
  SUBTONE_INTEGER_EMBEDDING = 29,
  SUBTONE_INTEGER_ATTENTION = 30,
  SUBTONE_INTEGER_SINUSOIDS = 31,
  SUBTONE_INTEGER_LSTM = 32
} subtone_kind;

typedef enum {
  SUBTONE_SIGMOID = 0,
  SUBTONE_TANH = 1,
  SUBTONE_SILU = 2,
  SUBTONE_GELU = 3,
  SUBTONE_GELU_TANH = 4,
  SUBTONE_EXP = 5
} subtone_function;

/* A weight: codes, or of a float op `floats` if they are not null, as they must not be of a recurrence. What a float op
 * multiplies is scale * (level - zero_point), each operation rounded. Read during subtone_append or
 * subtone_product_create only. */
typedef struct {
  int32_t activation_bits; /* 0: a float op; 2..8: an integer product */
  int32_t reserved;
  int64_t rows, columns;   /* outputs; everything else of its shape, multiplied */
  int64_t scale_groups;    /* columns of scale and zero_point; divides `columns` */
  const float* floats;     /* (rows, columns), in torch's order of axes */
  const uint8_t* codes;    /* (rows, columns), the columns (taps, in / groups) */
  const int8_t* levels;    /* 256 levels, indexed by a code; null of a float op: the codes themselves */
  const float* scale;      /* (rows, scale_groups) */
  const float* zero_point; /* the same shape, in the units of `levels` */
} subtone_weight;

/* What the ops of an integer-only program have; read during subtone_append only. */
typedef struct {
  int32_t low, high; /* of every result */
  int32_t left_multiplier, right_multiplier, shift; /* add; of others with one multiplier: the left one */
  int32_t is_signed;         /* products: x is int8, else uint8 */
  int32_t fraction_bits;     /* functions, glu, lstm: 0 to 16 */
  int32_t content_multiplier, position_multiplier, score_shift; /* attention */
  int64_t groups;            /* products, embedding: columns of multiplier and correction; divides those of the weight */
  int64_t epsilon;           /* layer_norm */
  const int32_t* multiplier; /* products, embedding: (rows, groups); affine, layer_norm: (width) */
  const int64_t* correction; /* (rows, groups); may be null */
  const int64_t* offset;     /* (rows); layer_norm, affine: (width); may be null but in affine */
  const int32_t* shifts;     /* products, embedding: (rows); affine: (width) */
  const int32_t* content_bias;  /* attention: (width); may be null, like position_bias */
  const int32_t* position_bias;
  const int32_t* positions;     /* (position_rows, width) */
  const int32_t* rotation;      /* sinusoids: (width / 2, 2), sine and cosine in units of 2^-30 */
} subtone_integers;

/* One op. Fields that its kind does not use are 0, values -1. Pointers are read during subtone_append only. */
typedef struct {
  int32_t kind;
  int32_t relu;
  int32_t input, other, third, fourth; /* values it reads; -1: none */
  int32_t output, cell;                /* values it writes; cell -1: none */
  int32_t function, heads;
  int64_t kernel, stride, dilation, padding, padding_behind, groups;
  int64_t in_channels, feature_kernel, feature_stride, feature_padding, feature_padding_behind;
  int64_t count, first;      /* stack; columns */
  int64_t left, right;       /* attention; -1: unlimited */
  int64_t position_rows;     /* attention: rows of the table `positions`, 0 where there is none */
  float low, high;           /* clip; scale: factor in low; norms: epsilon in low */
  subtone_weight weight;
  subtone_weight small_weight;
  const float* gain;          /* (width of output); may be null in conv1d and norms */
  const float* bias;          /* (outputs of weight, or width); may be null but in affine */
  const float* small_bias;
  const float* content_bias;  /* attention; may be null */
  const float* position_bias;
  const float* positions;     /* (position_rows, width) */
  const double* rotation;     /* sinusoids: (width / 2, 2), sine and cosine */
  subtone_integers integers;
} subtone_op;

/* Rows of one value in one run, counted from the start of the utterance: base .. first - 1 come from the
 * state, first .. end - 1 are computed or given, keep .. end - 1 go to the state. base <= first <= end,
 * base <= keep <= end. `offset`: bytes into the arena where row `base` lies, a multiple of 64; -1 for an input or
 * the output with base == first, which then lies with the caller. */
typedef struct {
  int64_t base, first, end, keep, offset;
} subtone_rows;

typedef struct subtone_engine subtone_engine;
typedef struct subtone_product subtone_product;

/* SUBTONE_ABI of the built library (not a status). */
SUBTONE_API int32_t subtone_abi(void);

/* What a status means, in words; never null (not a status). */
SUBTONE_API const char* subtone_status_text(int32_t status);

/* Number of instruction sets this machine has kernels for, best first (not a status); the first
 * `capacity` names are written to `names`. */
SUBTONE_API int32_t subtone_isas(const char** names, int32_t capacity);

/* An engine without ops. `widths[v]` is the width of value v; values 0 .. num_inputs - 1 are the inputs, `output` is
 * another. `threads` >= 1, the caller's own thread included; the others sleep between runs. */
SUBTONE_API int32_t subtone_create(const char* isa, int32_t threads, const int64_t* widths,
                                   int32_t num_values, int32_t num_inputs, int32_t output,
                                   subtone_engine** engine);

/* Adds an op behind the others and packs its constants for the kernels; keeps no pointer to them.
 * After an error the engine is as before. */
SUBTONE_API int32_t subtone_append(subtone_engine* engine, const subtone_op* op);

/* Makes the arena at least `arena_bytes` large. After the last append nothing else allocates but a run in which an
 * attention sees more rows at once than in any before (SUBTONE_MEMORY where there is none). */
SUBTONE_API int32_t subtone_reserve(subtone_engine* engine, int64_t arena_bytes);

/* Runs all ops on new rows. `rows[v]` of every value, as the ops imply them: an op computes rows first .. end - 1 of
 * its output, and its inputs hold what those need (SUBTONE_PLAN otherwise). A buffer overlaps no other that is
 * still to be read. Of a value that no op writes everything but the offset is 0. inputs[i]: (end - first, width) of
 * value i; y: the same of the output.
 *
 * The state is flat: rows base .. first - 1 of value 0, then of value 1, and so on; `state_size` floats in all, which is
 * checked; new_state the same with rows keep .. end - 1, `new_state_size` floats. Both are the caller's, and two. */
SUBTONE_API int32_t subtone_run(subtone_engine* engine, const subtone_rows* rows, const float* const* inputs, float* y,
                                const float* state, int64_t state_size, float* new_state, int64_t new_state_size);

/* Ends the engine and its threads; null is allowed. */
SUBTONE_API void subtone_destroy(subtone_engine* engine);

/* One integer product by itself, for a caller who has a program of his own: y = x W + bias, in the steps and with the
 * bits of a conv1d of `activation_bits` 2 to 8. `weight` and `bias` (rows; may be null) are read and packed here only. */
SUBTONE_API int32_t subtone_product_create(const char* isa, const subtone_weight* weight, const float* bias,
                                           subtone_product** product);

/* x (frames, columns) -> y (frames, rows), both the caller's, apart and contiguous. A row of x that holds NaN or an
 * infinity gives a row of NaN. Any number of threads may run any products at the same time: one of them has the
 * process's other threads, up to `threads` with its own, the rest work alone; the bits are the same. What a thread needs
 * beside the rows is allocated once and kept. */
SUBTONE_API int32_t subtone_product_run(const subtone_product* product, const float* x, int64_t frames,
                                        int32_t threads, float* y);

/* Runs all products of the process on the threads of an OpenMP run time, which the caller uses for other work: parallel,
 * index and size are its GOMP_parallel, omp_get_thread_num and omp_get_num_threads. All null: threads of the library's
 * own, as before the first call. */
typedef void (*subtone_parallel)(void (*work)(void* job), void* job, unsigned threads, unsigned flags);
SUBTONE_API int32_t subtone_product_team(subtone_parallel parallel, int (*index)(void), int (*size)(void));

/* The levels that were packed, (rows, columns) as `weight` had them. */
SUBTONE_API int32_t subtone_product_levels(const subtone_product* product, int8_t* levels);

/* Bytes that the packed weight takes (not a status); 0 of null. */
SUBTONE_API int64_t subtone_product_bytes(const subtone_product* product);

/* Frees the product, which nobody runs; null is allowed. */
SUBTONE_API void subtone_product_destroy(subtone_product* product);

/* What bounds are measured with, on the calling thread. Reads `num_bytes` (8 or more, a multiple of 8) `repeats` times
 * over, as fast as they can be read; `sum`: of all their 64-bit words, each repeat's again, modulo 2^64. */
SUBTONE_API int32_t subtone_measure_read(const void* data, int64_t num_bytes, int64_t repeats, uint64_t* sum);

/* Multiplies pairs of int8 on registers and adds them up in int32, as fast as exact sums of them can be had; `products`:
 * how many, in proportion to `rounds`, which is 1 or more. On aarch64 a plain loop: no bound for its dot products. */
SUBTONE_API int32_t subtone_measure_int8(int64_t rounds, int64_t* products);

/* What built the library; never null (not a status). */
SUBTONE_API const char* subtone_compiler(void);

#ifdef __cplusplus
}
#endif
#endif
