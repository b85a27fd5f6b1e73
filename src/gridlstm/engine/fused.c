/* Equations 1 to 3 and their derivatives for one diagonal of a grid, in one pass over memory.
 *
 * z holds the pre-activations (u, f, o, c). The forward pass replaces them by the gates, and the backward pass replaces
 * the gates by the gradients of the pre-activations.
 */
#include "fused.h"

/* Without it, GCC would not inline what is called from several places, and would keep the slots of a row in memory. */
#define INLINE static inline __attribute__((always_inline))

/* What the dimensions that share pre-activations have in common, in one row. NULL where the first has NULL. */
typedef struct {
    float *z;
    const float *bias;
    uint16_t *low_z;
    float *bias_sums;
} Row;

INLINE Row row_of(const Dimension *self, int64_t row, int64_t block) {
    const int64_t copy = self->copy_of ? self->copy_of[block] : 0;
    Row r = {.z = self->z + row * self->z_stride,
             .bias = self->bias ? self->bias + copy * 4 * self->d : NULL,
             .low_z = self->low_z ? self->low_z + row * self->z_stride : NULL,
             .bias_sums = self->bias_sums ? self->bias_sums + omp_get_thread_num() * 4 * self->d : NULL};
    return r;
}

/* The pre-activations of n units from i. */
INLINE Gates load_z(const Row *row, int64_t d, int64_t i, int64_t n) {
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
INLINE void add_to_sums(const Row *row, int64_t d, Gates g, int64_t i, int64_t n) {
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
INLINE void store_grad_z(const Row *row, int64_t d, Gates g, int64_t i, int64_t n) {
    if (row->low_z) {
        uint16_t *z = row->low_z + i;
        store_low(z, g.u, n);
        store_low(z + d, g.f, n);
        store_low(z + 2 * d, g.o, n);
        store_low(z + 3 * d, g.c, n);
    } else
        store_gates(row->z + i, d, g, n);
}

INLINE Gates gates_of(Gates z) {
    Gates g = {sigmoid(z.u), sigmoid(z.f), sigmoid(z.o), tanh_(z.c)};
    return g;
}

/* Keeps the gates of n units from i for the backward pass. In bfloat16 it computes them again: that takes less time than
 * writing and reading them in float32. */
INLINE void keep_gates(const Row *row, int64_t d, Gates g, int64_t i, int64_t n) {
    if (!row->low_z) store_gates(row->z + i, d, g, n);
}

INLINE Gates kept_gates(const Row *row, int64_t d, int64_t i, int64_t n) {
    return row->low_z ? gates_of(load_z(row, d, i, n)) : load_gates(row->z + i, d, n);
}

/* Gradients for h' = output(o, m', standard), given those of h' and m'; *dm becomes that of m. */
INLINE Gates backward_step(Gates g, vec m, vec new_m, vec new_h, vec dh, vec new_dm, vec *dm, int standard) {
    if (standard) {
        vec t = tanh_(new_m);
        return gates_backward(g, m, dh * t, new_dm + dh * g.o * (1.0f - t * t), dm);
    }
    vec product = dh * (1.0f - new_h * new_h);
    return gates_backward(g, m, product * new_m, new_dm + product * g.o, dm);
}

/* What each of them reads and writes in that row. */
typedef struct {
    const float *m;
    float *new_m, *new_h;
    uint16_t *low_h;
    int standard;
    int64_t row, next;
    /* With keep masks only: */
    int keeps_h, keeps_m; /* 1 if some of this row's h or m is kept */
    int choose_h, choose_m;
    const float *old_h;
    const float *keep_h; /* NULL: all is kept if keeps_h */
    const float *keep_m;
    /* Backward only: */
    float *dm;
    const float *new_dm;
    float *dh; /* of h' */
} Slots;

INLINE Slots slots_of(const Dimension *self, int64_t first, int64_t r, int backward) {
    const int64_t B = self->B, d = self->d, row = first * B + r, next = self->successor[first + r / B] * B + r % B;
    Slots s = {.m = self->m + row * d,
               .new_m = self->m + next * d,
               .new_h = self->h[0] + next * self->h_stride,
               .low_h = self->low_h[0] ? self->low_h[0] + next * self->h_stride : NULL,
               .keeps_h = self->keep_h || (self->hold_h && self->hold_h[row]),
               .keeps_m = self->keep_m || (self->hold_m && self->hold_m[row]),
               .choose_h = self->choose_h,
               .choose_m = self->choose_m,
               .standard = self->standard,
               .row = row,
               .next = next};
    if (s.keeps_h) {
        s.old_h = self->h[self->stage] + row * self->h_stride;
        s.keep_h = self->keep_h ? self->keep_h + row * d : NULL;
    }
    if (s.keeps_m) s.keep_m = self->keep_m ? self->keep_m + row * d : NULL;
    if (backward) {
        s.dm = self->grad_m + row * d;
        s.new_dm = self->grad_m + next * d;
        s.dh = self->grad_h + next * self->h_stride;
    }
    return s;
}

static inline vec kept(const float *keep, int64_t i, int64_t n) { return keep ? load_some(keep + i, n) : all(1.0f); }

/* n units from i, given their gates. */
INLINE void forward_units(const Slots *s, Gates g, int64_t i, int64_t n) {
    const vec old_m = load_some(s->m + i, n);
    vec m = g.f * old_m + g.u * g.c, h = output(g.o, m, s->standard);
    if (s->keeps_h) h = hold_back(s->choose_h, kept(s->keep_h, i, n), load_some(s->old_h + i, n), h);
    if (s->keeps_m) m = hold_back(s->choose_m, kept(s->keep_m, i, n), old_m, m);
    store_some(s->new_m + i, m, n);
    store_some(s->new_h + i, h, n);
    if (s->low_h) store_low(s->low_h + i, h, n);
}

/* Returns the gradients of the pre-activations. With keep masks the slots hold mixtures, so the step's own results are
 * computed again, and the caller adds held(dh') to the gradient of h. */
INLINE Gates backward_units(const Slots *s, Gates g, int64_t i, int64_t n) {
    const vec old_m = load_some(s->m + i, n);
    vec dh = load_some(s->dh + i, n), new_dm = load_some(s->new_dm + i, n), past_m = {0}, new_m, new_h, dm;
    if (s->keeps_h || s->keeps_m) {
        new_m = g.f * old_m + g.u * g.c;
        new_h = output(g.o, new_m, s->standard);
        if (s->keeps_h) dh = taken(s->choose_h, kept(s->keep_h, i, n), dh);
        if (s->keeps_m) {
            const vec keep = kept(s->keep_m, i, n);
            past_m = held(s->choose_m, keep, new_dm);
            new_dm = taken(s->choose_m, keep, new_dm);
        }
    } else {
        new_m = load_some(s->new_m + i, n);
        new_h = load_some(s->new_h + i, n);
    }
    const Gates grad = backward_step(g, old_m, new_m, new_h, dh, new_dm, &dm, s->standard);
    store_some(s->dm + i, s->keeps_m ? dm + past_m : dm, n);
    return grad;
}

static inline Gates sum_of(Gates a, Gates b) {
    Gates g = {a.u + b.u, a.f + b.f, a.o + b.o, a.c + b.c};
    return g;
}

/* Dimensions that share pre-activations: the first and its readers. */
static inline int sharing(const Dimension *self, const Dimension *dimensions[MOST_SHARING]) {
    int count = 0;
    for (const Dimension *each = self; each && count < MOST_SHARING; each = each->reader) dimensions[count++] = each;
    return count;
}

INLINE void forward_all(const Slots *slots, int count, Gates g, int64_t i, int64_t n) {
    for (int k = 0; k < count; k++) forward_units(slots + k, g, i, n);
}

INLINE Gates backward_all(const Slots *slots, int count, Gates g, int64_t i, int64_t n) {
    Gates grad = backward_units(slots, g, i, n);
    for (int k = 1; k < count; k++) grad = sum_of(grad, backward_units(slots + k, g, i, n));
    return grad;
}

/* Where d is no multiple of V, the last V units of a row overlap the ones before them. Their gates are computed first
 * and written last, because z is replaced in place. A shorter vector takes several times as long as a whole one.
 *
 * The number of dimensions that share pre-activations is a constant wherever it is 1. */
INLINE void forward_rows(const Dimension *const *dimensions, int count, int64_t first, int64_t begin, int64_t until) {
    const Dimension *self = dimensions[0];
    const int64_t d = self->d, end = d - V, full = d - d % V;
    const int overlap = full > 0 && full < d;
    for (int64_t r = begin; r < until; r++) {
        const Row own = row_of(self, first * self->B + r, first + r / self->B);
        Slots slots[MOST_SHARING];
        for (int k = 0; k < count; k++) slots[k] = slots_of(dimensions[k], first, r, 0);
        Gates last;
        if (overlap) last = gates_of(load_z(&own, d, end, V));
        for (int64_t i = 0; i < full; i += V) {
            const Gates g = gates_of(load_z(&own, d, i, V));
            keep_gates(&own, d, g, i, V);
            forward_all(slots, count, g, i, V);
        }
        if (overlap) {
            keep_gates(&own, d, last, end, V);
            forward_all(slots, count, last, end, V);
        } else if (!full) {
            const Gates g = gates_of(load_z(&own, d, 0, d));
            keep_gates(&own, d, g, 0, d);
            forward_all(slots, count, g, 0, d);
        }
        for (int k = 0; k < count; k++) {
            const Dimension *each = dimensions[k];
            for (int stage = 1; stage < each->stages; stage++) {
                const int64_t to = (stage <= each->stage ? slots[k].next : slots[k].row) * each->h_stride;
                memcpy(each->h[stage] + to, slots[k].new_h, d * sizeof(float));
                if (slots[k].low_h) memcpy(each->low_h[stage] + to, slots[k].low_h, d * sizeof(uint16_t));
            }
        }
    }
}

void lstm_forward_rows(const Dimension *self, int64_t first, int64_t begin, int64_t until) {
    const Dimension *dimensions[MOST_SHARING];
    const int count = sharing(self, dimensions);
    if (count == 1)
        forward_rows(dimensions, 1, first, begin, until);
    else
        forward_rows(dimensions, count, first, begin, until);
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

INLINE void backward_rows(const Dimension *const *dimensions, int count, int64_t first, int64_t begin, int64_t until) {
    const Dimension *self = dimensions[0];
    const int64_t d = self->d, end = d - V, full = d - d % V;
    const int overlap = full > 0 && full < d;
    for (int64_t r = begin; r < until; r++) {
        const Row own = row_of(self, first * self->B + r, first + r / self->B);
        Slots slots[MOST_SHARING];
        for (int k = 0; k < count; k++) {
            const Dimension *each = dimensions[k];
            slots[k] = slots_of(each, first, r, 1);
            if (each->later)
                for (int64_t i = 0; i < d; i++) slots[k].dh[i] += each->later[r * each->h_stride + i];
        }
        Gates last;
        if (overlap) last = kept_gates(&own, d, end, V);
        for (int64_t i = 0; i < full; i += V) {
            const Gates grad = backward_all(slots, count, kept_gates(&own, d, i, V), i, V);
            store_grad_z(&own, d, grad, i, V);
            if (own.bias_sums) add_to_sums(&own, d, grad, i, V);
        }
        if (overlap) {
            const Gates grad = backward_all(slots, count, last, end, V);
            store_grad_z(&own, d, grad, end, V);
            if (own.bias_sums) add_last_to_sums(&own, d, grad, d, d - full);
        } else if (!full) {
            const Gates grad = backward_all(slots, count, kept_gates(&own, d, 0, d), 0, d);
            store_grad_z(&own, d, grad, 0, d);
            if (own.bias_sums) add_to_sums(&own, d, grad, 0, d);
        }
    }
}

void lstm_backward_rows(const Dimension *self, int64_t first, int64_t begin, int64_t until) {
    const Dimension *dimensions[MOST_SHARING];
    const int count = sharing(self, dimensions);
    if (count == 1)
        backward_rows(dimensions, 1, first, begin, until);
    else
        backward_rows(dimensions, count, first, begin, until);
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
