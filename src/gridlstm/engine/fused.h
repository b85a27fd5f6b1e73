/* Shared by fused.c, fused_chain.c, fused_dropout.c and fused_layer_norm.c: the description of one dimension of a sweep,
 * vectors, sigma and tanh. The constants that Python uses too are defined in compiled.py.
 *
 * Rows are as in plan.py: block k of the diagonal reads row k of every buffer and writes its outputs to row
 * successor[k].
 */
#ifndef GRIDLSTM_FUSED_H
#define GRIDLSTM_FUSED_H

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

/* Floats of a vector register. GCC keeps longer vectors in memory, which takes twice the time. */
#if defined __AVX512F__
#define V 16
#elif defined __AVX__
#define V 8
#else
#define V 4
#endif

/* Elements of a pass over memory up to which one thread takes it: several take longer to start. */
#define ONE_THREAD 16384

typedef struct Dimension {
    float *z;                   /* (C, B, z_stride), at this dimension's first gate */
    float *m;                   /* (rows, B, d) */
    float *h[MOST_STAGES];      /* (rows, B, h_stride) input of each stage, at this dimension's first column */
    const int64_t *successor;   /* (C,) */
    float *grad_h;              /* as h; this and the fields below: backward only */
    float *grad_m;              /* as m */
    const float *later;         /* (r, B, h_stride) gradients of h' from later stages of the same block, or NULL */
    const float *keep_h;        /* (C, B, d), or NULL: h' becomes keep_h h + (1 - keep_h) h' */
    const float *keep_m;        /* likewise */
    const uint8_t *hold_h;      /* (C, B), or NULL: 1 where all of h' becomes h, as on padding; in place of keep_h */
    const uint8_t *hold_m;      /* likewise */
    const float *bias;          /* (copies, 4 d), added to z; or NULL, if the product has added it */
    double *grad_bias;          /* (threads, copies, 4 d), accumulated: in double precision, because there may be
                                   millions of rows; or NULL */
    float *bias_sums;           /* (threads, 4 d), 0 between calls */
    uint16_t *low_z;            /* (C, B, z_stride) pre-activations in bfloat16, in place of z; or NULL. The forward
                                   pass leaves them, and the backward pass replaces them by their gradients. */
    uint16_t *low_h[MOST_STAGES]; /* as h, in bfloat16: h' goes here too; or NULL */
    float *scratch;             /* (B, 4 d), for a chain in bfloat16 */
    const struct Dimension *reader; /* another dimension with the same pre-activations, computed together with this one,
                                   and so on, at most MOST_SHARING in all; or NULL. Of z, bias, threads and sizes, those
                                   of the first are used. */
    const int64_t *copy_of;     /* (C,) the weight copy of each block, or NULL for the only one; for bias */
    int64_t z_stride, h_stride, copies, B, d;
    int32_t stages;             /* number of h */
    int32_t stage;              /* of this dimension: h' goes to the successor's row of h[0..stage], own row after */
    int32_t standard;           /* h' = o tanh(m') instead of tanh(o m') */
    int32_t choose_h;           /* keep_h is 0 or 1, and the value not chosen has no effect, even if NaN */
    int32_t choose_m;           /* likewise */
    int32_t threads;
} Dimension;

typedef float vec __attribute__((vector_size(V * sizeof(float))));
typedef int32_t bits __attribute__((vector_size(V * sizeof(int32_t))));

/* n of the V elements exist: fewer than V at the end of a row. */
static inline vec load_some(const float *from, int64_t n) {
    vec x = {0};
    memcpy(&x, from, n * sizeof(float));
    return x;
}

static inline void store_some(float *to, vec x, int64_t n) { memcpy(to, &x, n * sizeof(float)); }

/* Elements of the vector that begins at i of d. */
static inline int64_t part(int64_t i, int64_t d) { return d - i < V ? d - i : V; }

static inline vec load(const float *from) { return load_some(from, V); }

static inline void store(float *to, vec x) { store_some(to, x, V); }

typedef uint32_t unsigned_bits __attribute__((vector_size(V * sizeof(uint32_t))));
typedef uint16_t low_bits __attribute__((vector_size(V * sizeof(uint16_t))));

/* A bfloat16 is the upper half of a float. */
static inline vec load_low(const uint16_t *from, int64_t n) {
    low_bits x = {0};
    memcpy(&x, from, n * sizeof(uint16_t));
    return (vec)(__builtin_convertvector(x, unsigned_bits) << 16);
}

/* Rounds to nearest, ties to even. NaN stays NaN. */
static inline void store_low(uint16_t *to, vec x, int64_t n) {
    const unsigned_bits b = (unsigned_bits)x, nan = (unsigned_bits)(x != x);
    const unsigned_bits rounded = ((b + 0x7fff + ((b >> 16) & 1)) & ~nan) | (nan & 0x7fc00000);
    const low_bits y = __builtin_convertvector(rounded >> 16, low_bits);
    memcpy(to, &y, n * sizeof(uint16_t));
}

/* mask is all ones or all zeros in each element. */
static inline vec choose(bits mask, vec yes, vec no) { return (vec)((mask & (bits)yes) | (~mask & (bits)no)); }

static inline vec all(float x) { return x - (vec){0}; }

/* NaN passes through: the instructions return their second operand if one is NaN. */
static inline vec within(vec x, float most) {
#if defined __AVX512F__
    return (vec)_mm512_max_ps((__m512)all(-most), _mm512_min_ps((__m512)all(most), (__m512)x));
#elif defined __AVX__
    return (vec)_mm256_max_ps((__m256)all(-most), _mm256_min_ps((__m256)all(most), (__m256)x));
#else
    x = choose(x > most, all(most), x);
    return choose(x < -most, all(-most), x);
#endif
}

#define ROUND 12582912.0f /* 1.5 * 2^23: adding it leaves no bits for a fraction */

/* exp(x) - 1 = scale p + (scale - 1), scale = 2^n, for |x| <= 87.5: p keeps its relative accuracy near 0. Polynomial of
 * Moshier's Cephes library, expf. */
static inline vec expm1_parts(vec x, vec *scale) {
    vec n = (x * 1.44269504f + ROUND) - ROUND;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    *scale = (vec)((__builtin_convertvector(n, bits) + 127) << 23);
    return p * r * r + r;
}

/* exp(x), to the accuracy of 1 + exp(x). With sixteen roots of 2 in a register, |r| <= ln 2 / 32, and fewer terms of the
 * series give all bits. */
static inline vec exp_(vec x) {
    x = within(x, 87.5f);
#ifdef __AVX512F__
    const vec roots = {1.0f,        1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f,
                       1.29683955f, 1.35425555f, 1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
                       1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
    const vec shifted = x * 23.0831207f + ROUND, n = shifted - ROUND; /* the last bits of shifted are those of n */
    const vec r = x - n * 0.0433349609375f + n * 1.32621525e-5f;
    const vec scale = (vec)_mm512_scalef_ps(_mm512_permutexvar_ps((__m512i)shifted, (__m512)roots),
                                            (__m512)(n * 0.0625f)); /* 2^(n / 16) */
    const vec p = (0.166666667f * r + 0.5f) * r * r + r;
#else
    vec scale;
    const vec p = expm1_parts(x, &scale);
#endif
    return scale * p + scale;
}

/* 1 / x for x from 1 to 2^127. Where the processor estimates it to 14 bits, one Newton step gives all bits of a float
 * but the last, in a quarter of the time of a division. NaN stays NaN. */
static inline vec reciprocal(vec x) {
#ifdef __AVX512F__
    vec y = (vec)_mm512_rcp14_ps((__m512)x);
    return y + y * (1.0f - x * y);
#else
    return 1.0f / x;
#endif
}

static inline vec sigmoid(vec x) { return reciprocal(1.0f + exp_(-x)); }

static inline vec tanh_(vec x) {
    vec scale, p = expm1_parts(2.0f * within(x, 15.0f), &scale);
    p = scale * p + (scale - 1.0f);
    return p * reciprocal(p + 2.0f);
}

/* h' = tanh(o m'), or o tanh(m') */
static inline vec output(vec o, vec m, int standard) { return standard ? o * tanh_(m) : tanh_(o * m); }

/* With a keep mask the result is held(old) + taken(new); the gradient of old is held(grad), of new taken(grad). Where
 * the mask chooses, the value not chosen has no effect, even if NaN. */
static inline vec held(int chooses, vec keep, vec old) {
    return chooses ? choose(keep != 0.0f, old, all(0.0f)) : keep * old;
}

static inline vec taken(int chooses, vec keep, vec new_) {
    return chooses ? choose(keep != 0.0f, all(0.0f), new_) : (1.0f - keep) * new_;
}

static inline vec hold_back(int chooses, vec keep, vec old, vec new_) {
    return chooses ? choose(keep != 0.0f, old, new_) : held(0, keep, old) + taken(0, keep, new_);
}

/* The gates of V units of a row, later the gradients of their pre-activations. */
typedef struct {
    vec u, f, o, c;
} Gates;

static inline Gates load_gates(const float *z, int64_t d, int64_t n) {
    Gates g = {load_some(z, n), load_some(z + d, n), load_some(z + 2 * d, n), load_some(z + 3 * d, n)};
    return g;
}

static inline void store_gates(float *z, int64_t d, Gates g, int64_t n) {
    store_some(z, g.u, n);
    store_some(z + d, g.f, n);
    store_some(z + 2 * d, g.o, n);
    store_some(z + 3 * d, g.c, n);
}

/* Gradients of the pre-activations, given those of the output gate and of m'; *dm becomes that of m. */
static inline Gates gates_backward(Gates g, vec m, vec d_o, vec d_m, vec *dm) {
    Gates grad = {d_m * g.c * g.u * (1.0f - g.u), d_m * m * g.f * (1.0f - g.f), d_o * g.o * (1.0f - g.o),
                  d_m * g.u * (1.0f - g.c * g.c)};
    *dm = d_m * g.f;
    return grad;
}

/* Rows [begin, until) of the blocks from first on. */
void lstm_forward_rows(const Dimension *self, int64_t first, int64_t begin, int64_t until);
void lstm_backward_rows(const Dimension *self, int64_t first, int64_t begin, int64_t until);

/* Adds this thread's sums to the gradient of a copy of the bias, and sets them to 0. */
void lstm_flush_bias_sums(const Dimension *self, int64_t copy);

/* Rows [begin, until) of a thread. */
typedef struct {
    int64_t begin, until;
} Share;

/* This thread's share of some rows, inside a parallel region. */
static inline Share share_of(int64_t rows) {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    return (Share){rows * thread / threads, rows * (thread + 1) / threads};
}

/* True if this many blocks are enough work for several threads. */
static inline int shared(const Dimension *self, int64_t count) {
    return self->threads > 1 && count * self->B * self->d > ONE_THREAD;
}

#endif
