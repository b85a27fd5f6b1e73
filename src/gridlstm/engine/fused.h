/* Shared by fused.c and fused_layer_norm.c: the description of one dimension of a sweep, vectors, sigma and tanh.
 *
 * Rows are as in plan.py: block k of the diagonal reads row k of every buffer and writes its outputs to row
 * successor[k].
 */
#ifndef GRIDLSTM_FUSED_H
#define GRIDLSTM_FUSED_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define V 16 /* elements per step; a constant, so that the compiler vectorises every loop over them */
#define MOST_STAGES 8

typedef struct {
    float *z;                   /* (C, B, z_stride), at this dimension's first gate */
    float *m;                   /* (rows, B, d) */
    float *h[MOST_STAGES];      /* (rows, B, h_stride) input of each stage, at this dimension's first column */
    const int64_t *successor;   /* (C,) */
    float *grad_h;              /* as h; this and the fields below: backward only */
    float *grad_m;              /* as m */
    const float *later;         /* (r, B, h_stride) gradients of h' from later stages of the same block, or NULL */
    const float *keep_h;        /* (C, B, d), or NULL: h' becomes keep_h h + (1 - keep_h) h' */
    const float *keep_m;        /* likewise */
    int64_t z_stride, h_stride, B, d;
    int32_t stages;             /* number of h */
    int32_t stage;              /* of this dimension: h' goes to the successor's row of h[0..stage], own row after */
    int32_t standard;           /* h' = o tanh(m') instead of tanh(o m') */
    int32_t choose_h;           /* keep_h is 0 or 1, and the value not chosen has no effect, even if NaN */
    int32_t choose_m;           /* likewise */
    int32_t threads;
} Dimension;

/* 2^n for integral n in [-126, 127]. */
static inline float power_of_two(float n) {
    int32_t bits = ((int32_t)n + 127) << 23;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

/* exp(x) - 1 = 2^n p + (2^n - 1): p keeps its relative accuracy near 0. Polynomial of Moshier's Cephes library, expf.
 * Comparisons are written so that NaN passes through. */
static inline float expm1_parts(float x, float *scale) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    *scale = power_of_two(n);
    return p * r * r + r;
}

static inline float sigmoid(float x) {
    float scale, p = expm1_parts(-x, &scale);
    return 1.0f / (1.0f + (scale * p + scale));
}

static inline float tanh_(float x) {
    float scale, p;
    x = x > 15.0f ? 15.0f : x;
    x = x < -15.0f ? -15.0f : x;
    p = expm1_parts(2.0f * x, &scale);
    p = scale * p + (scale - 1.0f);
    return p / (p + 2.0f);
}

/* Vectors of V elements, of which n exist: used at the end of a row, and everywhere if there are keep masks. */
static inline void load(float *to, const float *from, int64_t n) {
    if (n == V) {
        memcpy(to, from, V * sizeof(float));
        return;
    }
    memset(to, 0, V * sizeof(float));
    memcpy(to, from, n * sizeof(float));
}

static inline void store(float *to, const float *from, int64_t n) {
    memcpy(to, from, (n == V ? V : n) * sizeof(float));
}

/* With a keep mask the result is held(old) + taken(new); the gradient of old is held(grad), of new taken(grad). */
static inline float held(int choose, float keep, float old) {
    return choose ? (keep != 0.0f ? old : 0.0f) : keep * old;
}

static inline float taken(int choose, float keep, float new_) {
    return choose ? (keep != 0.0f ? 0.0f : new_) : (1.0f - keep) * new_;
}

static inline void hold_back(int choose, const float *restrict keep, const float *restrict old, float *restrict new_) {
    if (choose)
        for (int i = 0; i < V; i++) new_[i] = keep[i] != 0.0f ? old[i] : new_[i];
    else
        for (int i = 0; i < V; i++) new_[i] = held(0, keep[i], old[i]) + taken(0, keep[i], new_[i]);
}

/* past = held(grad), grad = taken(grad) */
static inline void split(int choose, const float *restrict keep, float *restrict grad, float *restrict past) {
    if (choose)
        for (int i = 0; i < V; i++) {
            past[i] = held(1, keep[i], grad[i]);
            grad[i] = taken(1, keep[i], grad[i]);
        }
    else
        for (int i = 0; i < V; i++) {
            past[i] = held(0, keep[i], grad[i]);
            grad[i] = taken(0, keep[i], grad[i]);
        }
}

/* Replaces the gates by the gradients of their pre-activations, given those of the output gate and of m'. */
static inline void gates_backward(float *restrict u, float *restrict f, float *restrict o, float *restrict c,
                                  const float *restrict m, const float *restrict d_o, const float *restrict d_m,
                                  float *restrict dm, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float g_u = u[i], g_f = f[i], g_o = o[i], g_c = c[i];
        u[i] = d_m[i] * g_c * g_u * (1.0f - g_u);
        f[i] = d_m[i] * m[i] * g_f * (1.0f - g_f);
        o[i] = d_o[i] * g_o * (1.0f - g_o);
        c[i] = d_m[i] * g_u * (1.0f - g_c * g_c);
        dm[i] = d_m[i] * g_f;
    }
}

/* True if this many blocks are enough work for several threads. */
static inline int shared(const Dimension *self, int64_t count) {
    return self->threads > 1 && count * self->B * self->d > 16384;
}

#endif
