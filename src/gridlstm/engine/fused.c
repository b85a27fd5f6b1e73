/* Equations 1 to 3 and their derivatives for one diagonal of a grid, in one pass over memory.
 *
 * z holds the pre-activations (u, f, o, c). The forward pass replaces them by the gates, and the backward pass replaces
 * the gates by the gradients of the pre-activations.
 */
#include "fused.h"

/* The pre-activations of V units, with the bias of the same units unless the product has added it. */
static inline Gates load_z(const float *z, const float *bias, int64_t d, int64_t n) {
    Gates g = load_gates(z, d, n);
    if (bias) {
        const Gates b = load_gates(bias, d, n);
        g.u += b.u;
        g.f += b.f;
        g.o += b.o;
        g.c += b.c;
    }
    return g;
}

static inline const float *bias_of(const Dimension *self, int64_t block) {
    const int64_t copy = self->copy_of ? self->copy_of[block] : 0;
    return self->bias ? self->bias + copy * self->bias_stride : NULL;
}

static inline Gates gates_of(Gates z) {
    Gates g = {sigmoid(z.u), sigmoid(z.f), sigmoid(z.o), tanh_(z.c)};
    return g;
}

/* What one step makes of V units. */
typedef struct {
    Gates gates;
    vec m, h;
} Step;

static inline Step forward_step(Gates z, vec m, int standard) {
    Step step = {.gates = gates_of(z)};
    step.m = step.gates.f * m + step.gates.u * step.gates.c;
    step.h = output(step.gates.o, step.m, standard);
    return step;
}

/* Gradients for h' = output(o, m', standard), given those of h' and m'; *dm becomes that of m. */
static inline Gates backward_step(Gates g, vec m, vec new_m, vec new_h, vec dh, vec new_dm, vec *dm, int standard) {
    if (standard) {
        vec t = tanh_(new_m);
        return gates_backward(g, m, dh * t, new_dm + dh * g.o * (1.0f - t * t), dm);
    }
    vec product = dh * (1.0f - new_h * new_h);
    return gates_backward(g, m, product * new_m, new_dm + product * g.o, dm);
}

/* n units from i, whose h' and m' go to row `next`. */
static inline void forward_part(const Dimension *self, const float *bias, int64_t row, int64_t next, int64_t i,
                                int64_t n) {
    const int64_t d = self->d;
    float *z = self->z + row * self->z_stride + i;
    const vec old_m = load_some(self->m + row * d + i, n);
    Step step = forward_step(load_z(z, bias ? bias + i : NULL, d, n), old_m, self->standard);
    if (self->keep_h)
        step.h = hold_back(self->choose_h, load_some(self->keep_h + row * d + i, n),
                           load_some(self->h[self->stage] + row * self->h_stride + i, n), step.h);
    if (self->keep_m)
        step.m = hold_back(self->choose_m, load_some(self->keep_m + row * d + i, n), old_m, step.m);
    store_gates(z, d, step.gates, n);
    store_some(self->m + next * d + i, step.m, n);
    store_some(self->h[0] + next * self->h_stride + i, step.h, n);
}

/* With keep masks the slots hold mixtures, so the step's own results are computed again. The caller adds held(dh') to
 * the gradient of h. */
static inline void backward_part(const Dimension *self, int64_t row, int64_t next, int64_t i, int64_t n) {
    const int64_t d = self->d;
    float *z = self->z + row * self->z_stride + i;
    const Gates g = load_gates(z, d, n);
    const vec old_m = load_some(self->m + row * d + i, n);
    vec dh = load_some(self->grad_h + next * self->h_stride + i, n), new_dm = load_some(self->grad_m + next * d + i, n);
    vec new_m, new_h, dm, past_m = all(0.0f); /* the caller adds the part of h that bypasses the step */
    if (self->keep_h || self->keep_m) {
        new_m = g.f * old_m + g.u * g.c;
        new_h = output(g.o, new_m, self->standard);
        if (self->keep_h) dh = taken(self->choose_h, load_some(self->keep_h + row * d + i, n), dh);
        if (self->keep_m) {
            const vec keep = load_some(self->keep_m + row * d + i, n);
            past_m = held(self->choose_m, keep, new_dm);
            new_dm = taken(self->choose_m, keep, new_dm);
        }
    } else {
        new_m = load_some(self->m + next * d + i, n);
        new_h = load_some(self->h[0] + next * self->h_stride + i, n);
    }
    store_gates(z, d, backward_step(g, old_m, new_m, new_h, dh, new_dm, &dm, self->standard), n);
    store_some(self->grad_m + row * d + i, dm + past_m, n);
}

/* Where d is no multiple of V, the last V units of a row overlap the ones before them. They are computed first and
 * written last, because z is replaced in place. A shorter vector takes several times as long as a whole one. */
void lstm_forward(const Dimension *self, int64_t first, int64_t count) {
    const int64_t B = self->B, d = self->d, full = self->keep_h || self->keep_m ? 0 : d - d % V, end = d - V;
    const int overlap = full > 0 && full < d;
#pragma omp parallel for num_threads(self->threads) if (shared(self, count))
    for (int64_t r = 0; r < count * B; r++) {
        const int64_t row = first * B + r, next = self->successor[first + r / B] * B + r % B;
        float *z = self->z + row * self->z_stride, *new_m = self->m + next * d;
        const float *m = self->m + row * d;
        float *new_h = self->h[0] + next * self->h_stride;
        const float *bias = bias_of(self, first + r / B);
        Step last;
        if (overlap) last = forward_step(load_z(z + end, bias ? bias + end : NULL, d, V), load(m + end), self->standard);
        for (int64_t i = 0; i < full; i += V) {
            const Step step = forward_step(load_z(z + i, bias ? bias + i : NULL, d, V), load(m + i), self->standard);
            store_gates(z + i, d, step.gates, V);
            store(new_m + i, step.m);
            store(new_h + i, step.h);
        }
        if (overlap) {
            store_gates(z + end, d, last.gates, V);
            store(new_m + end, last.m);
            store(new_h + end, last.h);
        } else
            for (int64_t i = full; i < d; i += V) forward_part(self, bias, row, next, i, part(i, d));
        for (int stage = 1; stage < self->stages; stage++)
            memcpy(self->h[stage] + (stage <= self->stage ? next : row) * self->h_stride, new_h, d * sizeof(float));
    }
}

/* Like lstm_forward, but writes only z. */
void lstm_gates(const Dimension *self, int64_t first, int64_t count) {
    const int64_t B = self->B, d = self->d;
#pragma omp parallel for num_threads(self->threads) if (shared(self, count))
    for (int64_t row = first * B; row < (first + count) * B; row++) {
        float *z = self->z + row * self->z_stride;
        for (int64_t i = 0; i < d; i += V) {
            const int64_t n = part(i, d);
            store_gates(z + i, d, gates_of(load_gates(z + i, d, n)), n);
        }
    }
}

void lstm_backward(const Dimension *self, int64_t first, int64_t count) {
    const int64_t B = self->B, d = self->d, full = self->keep_h || self->keep_m ? 0 : d - d % V, end = d - V;
    const int overlap = full > 0 && full < d;
#pragma omp parallel for num_threads(self->threads) if (shared(self, count))
    for (int64_t r = 0; r < count * B; r++) {
        const int64_t row = first * B + r, next = self->successor[first + r / B] * B + r % B;
        float *z = self->z + row * self->z_stride, *dm = self->grad_m + row * d;
        const float *m = self->m + row * d, *new_m = self->m + next * d, *new_dm = self->grad_m + next * d;
        const float *new_h = self->h[0] + next * self->h_stride;
        float *dh = self->grad_h + next * self->h_stride;
        if (self->later)
            for (int64_t i = 0; i < d; i++) dh[i] += self->later[r * self->h_stride + i];
        Gates last;
        vec last_dm;
        if (overlap)
            last = backward_step(load_gates(z + end, d, V), load(m + end), load(new_m + end), load(new_h + end),
                                 load(dh + end), load(new_dm + end), &last_dm, self->standard);
        for (int64_t i = 0; i < full; i += V) {
            vec here;
            store_gates(z + i, d,
                        backward_step(load_gates(z + i, d, V), load(m + i), load(new_m + i), load(new_h + i),
                                      load(dh + i), load(new_dm + i), &here, self->standard),
                        V);
            store(dm + i, here);
        }
        if (overlap) {
            store_gates(z + end, d, last, V);
            store(dm + end, last_dm);
        } else
            for (int64_t i = full; i < d; i += V) backward_part(self, row, next, i, part(i, d));
    }
}
