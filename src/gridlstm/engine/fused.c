/* Equations 1 to 3 and their derivatives for one diagonal of a grid, in one pass over memory.
 *
 * z holds the pre-activations (u, f, o, c). The forward pass replaces them by the gates, and the backward pass replaces
 * the gates by the gradients of the pre-activations.
 */
#include "fused.h"

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
    gates_backward(u, f, o, c, m, d_o, d_m, dm, V);
}

static void forward_part(const Dimension *self, int64_t row, int64_t next, int64_t i, int64_t n) {
    const int64_t d = self->d;
    float *z = self->z + row * self->z_stride + i;
    float gates[4][V], old_m[V], old_h[V], keep[V], new_m[V], new_h[V];
    for (int g = 0; g < 4; g++) load(gates[g], z + g * d, n);
    load(old_m, self->m + row * d + i, n);
    forward_step(gates[0], gates[1], gates[2], gates[3], old_m, new_m, new_h, self->standard);
    if (self->keep_h) {
        load(keep, self->keep_h + row * d + i, n);
        load(old_h, self->h[self->stage] + row * self->h_stride + i, n);
        hold_back(self->choose_h, keep, old_h, new_h);
    }
    if (self->keep_m) {
        load(keep, self->keep_m + row * d + i, n);
        hold_back(self->choose_m, keep, old_m, new_m);
    }
    for (int g = 0; g < 4; g++) store(z + g * d, gates[g], n);
    store(self->m + next * d + i, new_m, n);
    store(self->h[0] + next * self->h_stride + i, new_h, n);
}

/* With keep masks the slots hold mixtures, so the step's own results are computed again. The caller adds held(dh') to
 * the gradient of h. */
static void backward_part(const Dimension *self, int64_t row, int64_t next, int64_t i, int64_t n) {
    const int64_t d = self->d;
    float *z = self->z + row * self->z_stride + i;
    float gates[4][V], old_m[V], new_m[V], new_h[V], dh[V], new_dm[V], dm[V], keep[V];
    for (int g = 0; g < 4; g++) load(gates[g], z + g * d, n);
    load(old_m, self->m + row * d + i, n);
    load(dh, self->grad_h + next * self->h_stride + i, n);
    load(new_dm, self->grad_m + next * d + i, n);
    float past_h[V], past_m[V] = {0}; /* the caller adds the part of h that bypasses the step */
    if (self->keep_h || self->keep_m) {
        for (int j = 0; j < V; j++) {
            new_m[j] = gates[1][j] * old_m[j] + gates[0][j] * gates[3][j];
            new_h[j] = tanh_(gates[2][j] * new_m[j]);
        }
        if (self->keep_h) {
            load(keep, self->keep_h + row * d + i, n);
            split(self->choose_h, keep, dh, past_h);
        }
        if (self->keep_m) {
            load(keep, self->keep_m + row * d + i, n);
            split(self->choose_m, keep, new_dm, past_m);
        }
    } else {
        load(new_m, self->m + next * d + i, n);
        load(new_h, self->h[0] + next * self->h_stride + i, n);
    }
    backward_step(gates[0], gates[1], gates[2], gates[3], old_m, new_m, new_h, dh, new_dm, dm, self->standard);
    for (int j = 0; j < V; j++) dm[j] += past_m[j];
    for (int g = 0; g < 4; g++) store(z + g * d, gates[g], n);
    store(self->grad_m + row * d + i, dm, n);
}

void lstm_forward(const Dimension *self, int64_t first, int64_t count) {
    const int64_t B = self->B, d = self->d, full = self->keep_h || self->keep_m ? 0 : d - d % V;
#pragma omp parallel for num_threads(self->threads) if (shared(self, count))
    for (int64_t r = 0; r < count * B; r++) {
        const int64_t row = first * B + r, next = self->successor[first + r / B] * B + r % B;
        float *z = self->z + row * self->z_stride, *new_m = self->m + next * d;
        const float *m = self->m + row * d;
        float *new_h = self->h[0] + next * self->h_stride;
        for (int64_t i = 0; i < full; i += V)
            forward_step(z + i, z + d + i, z + 2 * d + i, z + 3 * d + i, m + i, new_m + i, new_h + i, self->standard);
        for (int64_t i = full; i < d; i += V) forward_part(self, row, next, i, d - i < V ? d - i : V);
        for (int stage = 1; stage < self->stages; stage++)
            memcpy(self->h[stage] + (stage <= self->stage ? next : row) * self->h_stride, new_h, d * sizeof(float));
    }
}

/* Like lstm_forward, but writes only z. */
void lstm_gates(const Dimension *self, int64_t first, int64_t count) {
    const int64_t B = self->B, d = self->d, full = d - d % V;
#pragma omp parallel for num_threads(self->threads) if (shared(self, count))
    for (int64_t row = first * B; row < (first + count) * B; row++) {
        float *z = self->z + row * self->z_stride;
        for (int64_t i = 0; i < full; i += V) gates_step(z + i, z + d + i, z + 2 * d + i, z + 3 * d + i);
        if (full < d) {
            float gates[4][V];
            for (int g = 0; g < 4; g++) load(gates[g], z + g * d + full, d - full);
            gates_step(gates[0], gates[1], gates[2], gates[3]);
            for (int g = 0; g < 4; g++) store(z + g * d + full, gates[g], d - full);
        }
    }
}

void lstm_backward(const Dimension *self, int64_t first, int64_t count) {
    const int64_t B = self->B, d = self->d, full = self->keep_h || self->keep_m ? 0 : d - d % V;
#pragma omp parallel for num_threads(self->threads) if (shared(self, count))
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
        for (int64_t i = full; i < d; i += V) backward_part(self, row, next, i, d - i < V ? d - i : V);
    }
}
