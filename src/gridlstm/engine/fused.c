/* Equations 1 to 3 and their derivatives for one diagonal of a grid, in one pass over memory.
 *
 * Rows are as in plan.py: block k of the diagonal reads row k of every buffer and writes what leaves it to row
 * successor[k]. z holds the pre-activations (u, f, o, c), which the forward pass replaces by the gates and the backward
 * pass by the gradients of the pre-activations.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define V 16 /* elements a step; a constant, so that the compiler turns every loop over them into vectors */
#define MOST_STAGES 8

typedef struct {
    float *z;                   /* (C, B, z_stride), at this dimension's first gate */
    float *m;                   /* (rows, B, d) */
    float *h[MOST_STAGES];      /* (rows, B, h_stride) what each stage multiplies, at this dimension's first column */
    const int64_t *successor;   /* (C,) */
    float *grad_h;              /* as h; backward only, like all that follow */
    float *grad_m;              /* as m */
    const float *later;         /* (r, B, h_stride) gradients of h' from later stages of the same block, or NULL */
    int64_t z_stride, h_stride, B, d;
    int32_t stages;             /* how many h there are */
    int32_t stage;              /* this dimension's: h' goes to the successor's row of h[0..stage], to its own after */
    int32_t standard;           /* h' = o tanh(m') instead of tanh(o m') */
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

static inline void gates_step(float *restrict u, float *restrict f, float *restrict o, float *restrict c) {
    for (int i = 0; i < V; i++) {
        u[i] = sigmoid(u[i]);
        f[i] = sigmoid(f[i]);
        o[i] = sigmoid(o[i]);
        c[i] = tanh_(c[i]);
    }
}

static inline void forward_step(float *restrict u, float *restrict f, float *restrict o, float *restrict c,
                                const float *restrict m, float *restrict new_m, float *restrict new_h, int standard) {
    gates_step(u, f, o, c);
    for (int i = 0; i < V; i++) new_m[i] = f[i] * m[i] + u[i] * c[i];
    if (standard)
        for (int i = 0; i < V; i++) new_h[i] = o[i] * tanh_(new_m[i]);
    else
        for (int i = 0; i < V; i++) new_h[i] = tanh_(o[i] * new_m[i]);
}

static inline void backward_step(float *restrict u, float *restrict f, float *restrict o, float *restrict c,
                                 const float *restrict m, const float *restrict new_m, const float *restrict new_h,
                                 const float *restrict dh, const float *restrict new_dm, float *restrict dm,
                                 int standard) {
    float d_o[V], d_m[V];
    if (standard)
        for (int i = 0; i < V; i++) {
            float t = tanh_(new_m[i]);
            d_o[i] = dh[i] * t;
            d_m[i] = new_dm[i] + dh[i] * o[i] * (1.0f - t * t);
        }
    else
        for (int i = 0; i < V; i++) {
            float product = dh[i] * (1.0f - new_h[i] * new_h[i]);
            d_o[i] = product * new_m[i];
            d_m[i] = new_dm[i] + product * o[i];
        }
    for (int i = 0; i < V; i++) {
        float g_u = u[i], g_f = f[i], g_o = o[i], g_c = c[i];
        u[i] = d_m[i] * g_c * g_u * (1.0f - g_u);
        f[i] = d_m[i] * m[i] * g_f * (1.0f - g_f);
        o[i] = d_o[i] * g_o * (1.0f - g_o);
        c[i] = d_m[i] * g_u * (1.0f - g_c * g_c);
        dm[i] = d_m[i] * g_f;
    }
}

void lstm_forward(const Dimension *self, int64_t first, int64_t count) {
    const int64_t B = self->B, d = self->d, full = d - d % V, rest = d - full;
    const size_t bytes = rest * sizeof(float);
#pragma omp parallel for num_threads(self->threads) if (self->threads > 1 && count * B * d > 16384)
    for (int64_t r = 0; r < count * B; r++) {
        const int64_t row = first * B + r, next = self->successor[first + r / B] * B + r % B;
        float *z = self->z + row * self->z_stride, *new_m = self->m + next * d;
        const float *m = self->m + row * d;
        float *new_h = self->h[0] + next * self->h_stride;
        for (int64_t i = 0; i < full; i += V)
            forward_step(z + i, z + d + i, z + 2 * d + i, z + 3 * d + i, m + i, new_m + i, new_h + i, self->standard);
        if (rest) {
            float gates[4][V] = {{0}}, old[V] = {0}, out_m[V], out_h[V];
            for (int g = 0; g < 4; g++) memcpy(gates[g], z + g * d + full, bytes);
            memcpy(old, m + full, bytes);
            forward_step(gates[0], gates[1], gates[2], gates[3], old, out_m, out_h, self->standard);
            for (int g = 0; g < 4; g++) memcpy(z + g * d + full, gates[g], bytes);
            memcpy(new_m + full, out_m, bytes);
            memcpy(new_h + full, out_h, bytes);
        }
        for (int stage = 1; stage < self->stages; stage++)
            memcpy(self->h[stage] + (stage <= self->stage ? next : row) * self->h_stride, new_h, d * sizeof(float));
    }
}

/* As lstm_forward, but only z is written. */
void lstm_gates(const Dimension *self, int64_t first, int64_t count) {
    const int64_t B = self->B, d = self->d, full = d - d % V, rest = d - full;
    const size_t bytes = rest * sizeof(float);
#pragma omp parallel for num_threads(self->threads) if (self->threads > 1 && count * B * d > 16384)
    for (int64_t row = first * B; row < (first + count) * B; row++) {
        float *z = self->z + row * self->z_stride;
        for (int64_t i = 0; i < full; i += V) gates_step(z + i, z + d + i, z + 2 * d + i, z + 3 * d + i);
        if (rest) {
            float gates[4][V] = {{0}};
            for (int g = 0; g < 4; g++) memcpy(gates[g], z + g * d + full, bytes);
            gates_step(gates[0], gates[1], gates[2], gates[3]);
            for (int g = 0; g < 4; g++) memcpy(z + g * d + full, gates[g], bytes);
        }
    }
}

void lstm_backward(const Dimension *self, int64_t first, int64_t count) {
    const int64_t B = self->B, d = self->d, full = d - d % V, rest = d - full;
    const size_t bytes = rest * sizeof(float);
#pragma omp parallel for num_threads(self->threads) if (self->threads > 1 && count * B * d > 16384)
    for (int64_t r = 0; r < count * B; r++) {
        const int64_t row = first * B + r, next = self->successor[first + r / B] * B + r % B;
        float *z = self->z + row * self->z_stride, *dm = self->grad_m + row * d;
        const float *m = self->m + row * d, *new_m = self->m + next * d, *new_dm = self->grad_m + next * d;
        const float *new_h = self->h[0] + next * self->h_stride;
        float *dh = self->grad_h + next * self->h_stride;
        if (self->later)
            for (int64_t i = 0; i < d; i++) dh[i] += self->later[r * self->h_stride + i];
        for (int64_t i = 0; i < full; i += V)
            backward_step(z + i, z + d + i, z + 2 * d + i, z + 3 * d + i, m + i, new_m + i, new_h + i, dh + i,
                          new_dm + i, dm + i, self->standard);
        if (rest) {
            float gates[4][V] = {{0}}, old[V] = {0}, out_m[V] = {0}, out_h[V] = {0}, in_h[V] = {0}, in_m[V] = {0}, out[V];
            for (int g = 0; g < 4; g++) memcpy(gates[g], z + g * d + full, bytes);
            memcpy(old, m + full, bytes);
            memcpy(out_m, new_m + full, bytes);
            memcpy(out_h, new_h + full, bytes);
            memcpy(in_h, dh + full, bytes);
            memcpy(in_m, new_dm + full, bytes);
            backward_step(gates[0], gates[1], gates[2], gates[3], old, out_m, out_h, in_h, in_m, out, self->standard);
            for (int g = 0; g < 4; g++) memcpy(z + g * d + full, gates[g], bytes);
            memcpy(dm + full, out, bytes);
        }
    }
}
