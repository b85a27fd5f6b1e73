/* Equations 1 to 3 and their derivatives for one diagonal of a grid, in one pass over memory.
 *
 * z holds the pre-activations (u, f, o, c). The forward pass replaces them by the gates, and the backward pass replaces
 * the gates by the gradients of the pre-activations.
 */
#include "fused.h"

/* What a step reads and writes of one row. NULL where the dimension has NULL. */
typedef struct {
    float *z;
    const float *bias;
    uint16_t *low_z;
    float *bias_sums;
} Row;

static inline Row row_of(const Dimension *self, int64_t row, int64_t block) {
    const int64_t copy = self->copy_of ? self->copy_of[block] : 0;
    Row r = {.z = self->z + row * self->z_stride,
             .bias = self->bias ? self->bias + copy * 4 * self->d : NULL,
             .low_z = self->low_z ? self->low_z + row * self->z_stride : NULL,
             .bias_sums = self->bias_sums ? self->bias_sums + omp_get_thread_num() * 4 * self->d : NULL};
    return r;
}

/* The pre-activations of n units from i. */
static inline Gates load_z(const Row *row, int64_t d, int64_t i, int64_t n) {
    Gates g;
    if (row->low_z) {
        const uint16_t *z = row->low_z + i;
        g = (Gates){load_low(z, n), load_low(z + d, n), load_low(z + 2 * d, n), load_low(z + 3 * d, n)};
    } else
        g = load_gates(row->z + i, d, n);
    if (row->bias) {
        const Gates b = load_gates(row->bias + i, d, n);
        g.u += b.u;
        g.f += b.f;
        g.o += b.o;
        g.c += b.c;
    }
    return g;
}

/* Adds the gradients of n units from i to the sums of this thread. */
static inline void add_to_sums(const Row *row, int64_t d, Gates g, int64_t i, int64_t n) {
    float *sums = row->bias_sums + i;
    store_some(sums, load_some(sums, n) + g.u, n);
    store_some(sums + d, load_some(sums + d, n) + g.f, n);
    store_some(sums + 2 * d, load_some(sums + 2 * d, n) + g.o, n);
    store_some(sums + 3 * d, load_some(sums + 3 * d, n) + g.c, n);
}

/* Likewise for the last n of the V units before i. */
static inline void add_last_to_sums(const Row *row, int64_t d, Gates g, int64_t i, int64_t n) {
    float *sums = row->bias_sums + i - V;
    for (int64_t j = V - n; j < V; j++) {
        sums[j] += g.u[j];
        sums[d + j] += g.f[j];
        sums[2 * d + j] += g.o[j];
        sums[3 * d + j] += g.c[j];
    }
}

/* The gradients of the pre-activations of n units from i. */
static inline void store_grad_z(const Row *row, int64_t d, Gates g, int64_t i, int64_t n) {
    if (row->low_z) {
        uint16_t *z = row->low_z + i;
        store_low(z, g.u, n);
        store_low(z + d, g.f, n);
        store_low(z + 2 * d, g.o, n);
        store_low(z + 3 * d, g.c, n);
    } else
        store_gates(row->z + i, d, g, n);
}

static inline Gates gates_of(Gates z) {
    Gates g = {sigmoid(z.u), sigmoid(z.f), sigmoid(z.o), tanh_(z.c)};
    return g;
}

/* Keeps the gates of n units from i for the backward pass. In bfloat16 it computes them again: that takes less time than
 * writing and reading them in float32. */
static inline void keep_gates(const Row *row, int64_t d, Gates g, int64_t i, int64_t n) {
    if (!row->low_z) store_gates(row->z + i, d, g, n);
}

static inline Gates kept_gates(const Row *row, int64_t d, int64_t i, int64_t n) {
    return row->low_z ? gates_of(load_z(row, d, i, n)) : load_gates(row->z + i, d, n);
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

/* What a row keeps of h or of m, of n units from i. */
static inline vec kept_part(const float *keep, const uint8_t *hold, int64_t row, int64_t d, int64_t i, int64_t n) {
    return keep ? load_some(keep + row * d + i, n) : all(hold[row]);
}

/* Rows that keep nothing take the path without masks. */
static inline int keeps_h(const Dimension *self, int64_t row) {
    return self->keep_h || (self->hold_h && self->hold_h[row]);
}

static inline int keeps_m(const Dimension *self, int64_t row) {
    return self->keep_m || (self->hold_m && self->hold_m[row]);
}

/* Units of a row that are computed in whole vectors. */
static inline int64_t in_vectors(const Dimension *self, int64_t row) {
    return keeps_h(self, row) || keeps_m(self, row) ? 0 : self->d - self->d % V;
}

/* n units from i, whose h' and m' go to row `next`. */
static inline void forward_part(const Dimension *self, const Row *own, int64_t row, int64_t next, int64_t i, int64_t n) {
    const int64_t d = self->d;
    const vec old_m = load_some(self->m + row * d + i, n);
    Step step = forward_step(load_z(own, d, i, n), old_m, self->standard);
    if (keeps_h(self, row))
        step.h = hold_back(self->choose_h, kept_part(self->keep_h, self->hold_h, row, d, i, n),
                           load_some(self->h[self->stage] + row * self->h_stride + i, n), step.h);
    if (keeps_m(self, row))
        step.m = hold_back(self->choose_m, kept_part(self->keep_m, self->hold_m, row, d, i, n), old_m, step.m);
    keep_gates(own, d, step.gates, i, n);
    store_some(self->m + next * d + i, step.m, n);
    store_some(self->h[0] + next * self->h_stride + i, step.h, n);
    if (self->low_h[0]) store_low(self->low_h[0] + next * self->h_stride + i, step.h, n);
}

/* With keep masks the slots hold mixtures, so the step's own results are computed again. The caller adds held(dh') to
 * the gradient of h. */
static inline void backward_part(const Dimension *self, const Row *own, int64_t row, int64_t next, int64_t i,
                                 int64_t n) {
    const int64_t d = self->d;
    const Gates g = kept_gates(own, d, i, n);
    const vec old_m = load_some(self->m + row * d + i, n);
    vec dh = load_some(self->grad_h + next * self->h_stride + i, n), new_dm = load_some(self->grad_m + next * d + i, n);
    vec new_m, new_h, dm, past_m = all(0.0f); /* the caller adds the part of h that bypasses the step */
    if (keeps_h(self, row) || keeps_m(self, row)) {
        new_m = g.f * old_m + g.u * g.c;
        new_h = output(g.o, new_m, self->standard);
        if (keeps_h(self, row))
            dh = taken(self->choose_h, kept_part(self->keep_h, self->hold_h, row, d, i, n), dh);
        if (keeps_m(self, row)) {
            const vec keep = kept_part(self->keep_m, self->hold_m, row, d, i, n);
            past_m = held(self->choose_m, keep, new_dm);
            new_dm = taken(self->choose_m, keep, new_dm);
        }
    } else {
        new_m = load_some(self->m + next * d + i, n);
        new_h = load_some(self->h[0] + next * self->h_stride + i, n);
    }
    const Gates grad = backward_step(g, old_m, new_m, new_h, dh, new_dm, &dm, self->standard);
    store_grad_z(own, d, grad, i, n);
    if (own->bias_sums) add_to_sums(own, d, grad, i, n);
    store_some(self->grad_m + row * d + i, dm + past_m, n);
}

/* Where d is no multiple of V, the last V units of a row overlap the ones before them. They are computed first and
 * written last, because z is replaced in place. A shorter vector takes several times as long as a whole one. */
void lstm_forward_rows(const Dimension *self, int64_t first, int64_t begin, int64_t until) {
    const int64_t B = self->B, d = self->d, end = d - V;
    for (int64_t r = begin; r < until; r++) {
        const int64_t row = first * B + r, next = self->successor[first + r / B] * B + r % B;
        const int64_t full = in_vectors(self, row);
        const int overlap = full > 0 && full < d;
        const Row own = row_of(self, row, first + r / B);
        float *new_m = self->m + next * d, *new_h = self->h[0] + next * self->h_stride;
        uint16_t *low_h = self->low_h[0] ? self->low_h[0] + next * self->h_stride : NULL;
        const float *m = self->m + row * d;
        Step last;
        if (overlap) last = forward_step(load_z(&own, d, end, V), load(m + end), self->standard);
        for (int64_t i = 0; i < full; i += V) {
            const Step step = forward_step(load_z(&own, d, i, V), load(m + i), self->standard);
            keep_gates(&own, d, step.gates, i, V);
            store(new_m + i, step.m);
            store(new_h + i, step.h);
            if (low_h) store_low(low_h + i, step.h, V);
        }
        if (overlap) {
            keep_gates(&own, d, last.gates, end, V);
            store(new_m + end, last.m);
            store(new_h + end, last.h);
            if (low_h) store_low(low_h + end, last.h, V);
        } else
            for (int64_t i = full; i < d; i += V) forward_part(self, &own, row, next, i, part(i, d));
        for (int stage = 1; stage < self->stages; stage++) {
            const int64_t to = (stage <= self->stage ? next : row) * self->h_stride;
            memcpy(self->h[stage] + to, new_h, d * sizeof(float));
            if (low_h) memcpy(self->low_h[stage] + to, low_h, d * sizeof(uint16_t));
        }
    }
}

void lstm_forward(const Dimension *self, int64_t first, int64_t count) {
    const int64_t rows = count * self->B;
#pragma omp parallel num_threads(self->threads) if (shared(self, count))
    {
        const Share own = share_of(rows);
        lstm_forward_rows(self, first, own.begin, own.until);
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

void lstm_flush_bias_sums(const Dimension *self, int64_t copy) {
    const int64_t thread = omp_get_thread_num(), length = 4 * self->d;
    float *sums = self->bias_sums + thread * length;
    double *gradient = self->grad_bias + (thread * self->copies + copy) * length;
    for (int64_t i = 0; i < length; i++) {
        gradient[i] += sums[i];
        sums[i] = 0.0f;
    }
}

void lstm_backward_rows(const Dimension *self, int64_t first, int64_t begin, int64_t until) {
    const int64_t B = self->B, d = self->d, end = d - V;
    for (int64_t r = begin; r < until; r++) {
        const int64_t row = first * B + r, next = self->successor[first + r / B] * B + r % B;
        const int64_t full = in_vectors(self, row);
        const int overlap = full > 0 && full < d;
        const Row own = row_of(self, row, first + r / B);
        float *dm = self->grad_m + row * d;
        const float *m = self->m + row * d, *new_m = self->m + next * d, *new_dm = self->grad_m + next * d;
        const float *new_h = self->h[0] + next * self->h_stride;
        float *dh = self->grad_h + next * self->h_stride;
        if (self->later)
            for (int64_t i = 0; i < d; i++) dh[i] += self->later[r * self->h_stride + i];
        Gates last;
        vec last_dm = {0};
        if (overlap)
            last = backward_step(kept_gates(&own, d, end, V), load(m + end), load(new_m + end), load(new_h + end),
                                 load(dh + end), load(new_dm + end), &last_dm, self->standard);
        for (int64_t i = 0; i < full; i += V) {
            vec here;
            const Gates grad = backward_step(kept_gates(&own, d, i, V), load(m + i), load(new_m + i), load(new_h + i),
                                             load(dh + i), load(new_dm + i), &here, self->standard);
            store_grad_z(&own, d, grad, i, V);
            if (own.bias_sums) add_to_sums(&own, d, grad, i, V);
            store(dm + i, here);
        }
        if (overlap) {
            store_grad_z(&own, d, last, end, V);
            if (own.bias_sums) add_last_to_sums(&own, d, last, d, d - full);
            store(dm + end, last_dm);
        } else
            for (int64_t i = full; i < d; i += V) backward_part(self, &own, row, next, i, part(i, d));
    }
}

void lstm_backward(const Dimension *self, int64_t first, int64_t count) {
    const int64_t B = self->B;
#pragma omp parallel num_threads(self->threads) if (shared(self, count))
    {
        const Share own = share_of(count * B);
        for (int64_t begin = own.begin, next; begin < own.until; begin = next) { /* rows of one copy of the bias */
            const int64_t copy = self->copy_of ? self->copy_of[first + begin / B] : 0;
            next = own.until;
            if (self->grad_bias && self->copy_of)
                for (next = (begin / B + 1) * B; next < own.until && self->copy_of[first + next / B] == copy;) next += B;
            if (next > own.until) next = own.until;
            lstm_backward_rows(self, first, begin, next);
            if (self->grad_bias) lstm_flush_bias_sums(self, copy);
        }
    }
}
