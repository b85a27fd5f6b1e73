/* The LSTM with layer normalization (cells.LayerNormLSTM) and its derivatives for one diagonal of a grid.
 *
 *     g = alpha(gain_g n_g + shift_g), n_g = LN(z_g), for the gates u, f, o and the candidate c
 *     m' = f m + u c, y = gain_m LN(m') + shift_m, h' = tanh(o y), or o tanh(y)
 *
 * z keeps the pre-activations. The backward pass computes everything else again, row by row in the cache, which takes
 * less time than saving and reading statistics, normalized values and gates, and replaces z by its gradient.
 */
#include "fused.h"


typedef struct {
    const float *gain, *shift;      /* (copies, NORM_PARTS, d) */
    const int64_t *copy_of;         /* (C,) the weight copy of each block */
    float *scratch;                 /* (threads, NORM_SCRATCH, d) */
    double *sums;                   /* (threads, 2, copies, NORM_PARTS, d), 0 between calls; backward only */
    double *grad_gain, *grad_shift; /* (copies, NORM_PARTS, d), accumulated; backward only. In double precision, because
                                       there may be millions of rows. */
    int64_t copies;
    float epsilon;
} Norm;

/* Values of a row: the gates, the normalized values, and their divisors. */
typedef struct {
    float *gates;  /* (4, d) */
    float *normal; /* (NORM_PARTS, d) */
    float *new_m;  /* (d,) before the keep mask */
    float *y;      /* (d,) */
    float *work;   /* (d,) */
    float scale[NORM_PARTS];
} Row;

static Row row_of(float *scratch, int64_t d) {
    Row row = {.gates = scratch, .normal = scratch + 4 * d, .new_m = scratch + 9 * d, .y = scratch + 10 * d,
               .work = scratch + 11 * d};
    return row;
}

/* Sums in V lanes: the compiler must not reorder a plain sum. */
static inline float total(const float *restrict lanes) {
    float result = 0.0f;
    for (int i = 0; i < V; i++) result += lanes[i];
    return result;
}

/* normal = (x - mean) / sqrt(variance + epsilon); returns 1 / sqrt(variance + epsilon). */
static float normalize(const float *restrict x, float *restrict normal, int64_t d, float epsilon) {
    const int64_t full = d - d % V;
    float lanes[V] = {0};
    for (int64_t i = 0; i < full; i += V)
        for (int j = 0; j < V; j++) lanes[j] += x[i + j];
    for (int64_t i = full; i < d; i++) lanes[i - full] += x[i];
    const float mean = total(lanes) / (float)d;
    memset(lanes, 0, sizeof lanes);
    for (int64_t i = 0; i < full; i += V)
        for (int j = 0; j < V; j++) {
            float difference = normal[i + j] = x[i + j] - mean;
            lanes[j] += difference * difference;
        }
    for (int64_t i = full; i < d; i++) {
        float difference = normal[i] = x[i] - mean;
        lanes[i - full] += difference * difference;
    }
    const float scale = 1.0f / sqrtf(total(lanes) / (float)d + epsilon);
    for (int64_t i = 0; i < d; i++) normal[i] *= scale;
    return scale;
}

/* Replaces dy by dx, for y = gain normal + shift and normal = LN(x); adds to the gradients of gain and shift. */
static void normalize_backward(float *restrict dy, const float *restrict normal, const float *restrict gain,
                               float scale, double *restrict d_gain, double *restrict d_shift, float *restrict dx,
                               int64_t d, int add) {
    const int64_t full = d - d % V;
    float lanes[V] = {0}, products[V] = {0};
    for (int64_t i = 0; i < d; i++) {
        d_gain[i] += dy[i] * normal[i];
        d_shift[i] += dy[i];
        dy[i] *= gain[i];
    }
    for (int64_t i = 0; i < full; i += V)
        for (int j = 0; j < V; j++) {
            lanes[j] += dy[i + j];
            products[j] += dy[i + j] * normal[i + j];
        }
    for (int64_t i = full; i < d; i++) {
        lanes[i - full] += dy[i];
        products[i - full] += dy[i] * normal[i];
    }
    const float mean = total(lanes) / (float)d, product = total(products) / (float)d;
    if (add)
        for (int64_t i = 0; i < d; i++) dx[i] += scale * (dy[i] - mean - normal[i] * product);
    else
        for (int64_t i = 0; i < d; i++) dx[i] = scale * (dy[i] - mean - normal[i] * product);
}

/* Computes everything up to y from z and m. */
static void step(Row *row, const Norm *norm, const float *gain, const float *shift, const float *restrict z,
                 const float *restrict m, int64_t d) {
    for (int g = 0; g < 4; g++) row->scale[g] = normalize(z + g * d, row->normal + g * d, d, norm->epsilon);
    const float *restrict normal = row->normal;
    float *restrict gates = row->gates;
    for (int64_t i = 0; i < 4 * d; i++) gates[i] = gain[i] * normal[i] + shift[i];
    for (int64_t i = 0, n; i < 3 * d; i += n) {
        n = part(i, 3 * d);
        store_some(gates + i, sigmoid(load_some(gates + i, n)), n);
    }
    for (int64_t i = 3 * d, n; i < 4 * d; i += n) {
        n = part(i, 4 * d);
        store_some(gates + i, tanh_(load_some(gates + i, n)), n);
    }
    const float *u = gates, *f = gates + d, *c = gates + 3 * d;
    float *restrict new_m = row->new_m;
    for (int64_t i = 0; i < d; i++) new_m[i] = f[i] * m[i] + u[i] * c[i];
    row->scale[4] = normalize(new_m, row->normal + 4 * d, d, norm->epsilon);
    float *restrict y = row->y;
    for (int64_t i = 0; i < d; i++) y[i] = gain[4 * d + i] * normal[4 * d + i] + shift[4 * d + i];
}

static void keep_some(int chooses, const float *keep, const float *old, float *new_, int64_t d) {
    for (int64_t i = 0, n; i < d; i += n) {
        n = part(i, d);
        store_some(new_ + i, hold_back(chooses, load_some(keep + i, n), load_some(old + i, n), load_some(new_ + i, n)),
                   n);
    }
}

static void forward_row(const Dimension *self, const Norm *norm, float *scratch, int64_t block, int64_t b) {
    const int64_t d = self->d, from = block * self->B + b, next = self->successor[block] * self->B + b;
    const int64_t copy = norm->copy_of[block] * NORM_PARTS * d;
    const float *m = self->m + from * d;
    float *new_m = self->m + next * d, *restrict new_h = self->h[0] + next * self->h_stride;
    Row row = row_of(scratch, d);
    step(&row, norm, norm->gain + copy, norm->shift + copy, self->z + from * self->z_stride, m, d);
    for (int64_t i = 0, n; i < d; i += n) {
        n = part(i, d);
        store_some(new_h + i, output(load_some(row.gates + 2 * d + i, n), load_some(row.y + i, n), self->standard), n);
    }
    memcpy(new_m, row.new_m, d * sizeof(float));
    if (self->keep_h)
        keep_some(self->choose_h, self->keep_h + from * d, self->h[self->stage] + from * self->h_stride, new_h, d);
    if (self->keep_m) keep_some(self->choose_m, self->keep_m + from * d, m, new_m, d);
    for (int stage = 1; stage < self->stages; stage++)
        memcpy(self->h[stage] + (stage <= self->stage ? next : from) * self->h_stride, new_h, d * sizeof(float));
}

/* As in fused.c, the caller adds held(dh') to the gradient of h. */
static void backward_row(const Dimension *self, const Norm *norm, float *scratch, double *d_gain, double *d_shift,
                         int64_t block, int64_t b, const float *later) {
    const int64_t d = self->d, from = block * self->B + b, next = self->successor[block] * self->B + b;
    const int64_t copy = norm->copy_of[block] * NORM_PARTS * d;
    const float *gain = norm->gain + copy;
    const float *restrict m = self->m + from * d, *restrict new_dm = self->grad_m + next * d;
    const float *keep_h = self->keep_h ? self->keep_h + from * d : NULL;
    const float *keep_m = self->keep_m ? self->keep_m + from * d : NULL;
    float *z = self->z + from * self->z_stride, *restrict dm = self->grad_m + from * d;
    float *restrict dh = self->grad_h + next * self->h_stride;
    d_gain += copy;
    d_shift += copy;
    if (later)
        for (int64_t i = 0; i < d; i++) dh[i] += later[i];
    Row row = row_of(scratch, d);
    step(&row, norm, gain, norm->shift + copy, z, m, d);
    float *y = row.y, *d_o = row.work, *d_m = row.new_m;
    /* Gradients overwrite values: that of y in y, of the output gate in work, of the memory in new_m. */
    for (int64_t i = 0, n; i < d; i += n) {
        n = part(i, d);
        const vec o = load_some(row.gates + 2 * d + i, n), out = load_some(y + i, n);
        vec grad = load_some(dh + i, n), past = load_some(new_dm + i, n);
        if (keep_h) grad = taken(self->choose_h, load_some(keep_h + i, n), grad);
        if (keep_m) past = taken(self->choose_m, load_some(keep_m + i, n), past);
        const vec t = tanh_(self->standard ? out : o * out), product = grad * (1.0f - t * t);
        store_some(d_o + i, self->standard ? grad * t : product * out, n);
        store_some(y + i, product * o, n);
        store_some(d_m + i, past, n);
    }
    normalize_backward(y, row.normal + 4 * d, gain + 4 * d, row.scale[4], d_gain + 4 * d, d_shift + 4 * d, d_m, d, 1);
    for (int64_t i = 0, n; i < d; i += n) {
        n = part(i, d);
        float *gates = row.gates + i;
        vec into_m;
        const Gates g = gates_backward(load_gates(gates, d, n), load_some(m + i, n), load_some(d_o + i, n),
                                       load_some(d_m + i, n), &into_m);
        store_gates(gates, d, g, n);
        if (keep_m) into_m += held(self->choose_m, load_some(keep_m + i, n), load_some(new_dm + i, n));
        store_some(dm + i, into_m, n);
    }
    for (int g = 0; g < 4; g++)
        normalize_backward(row.gates + g * d, row.normal + g * d, gain + g * d, row.scale[g], d_gain + g * d,
                           d_shift + g * d, z + g * d, d, 0);
}

void layer_norm_forward(const Dimension *self, const Norm *norm, int64_t first, int64_t count) {
    const int64_t B = self->B, d = self->d;
#pragma omp parallel for num_threads(self->threads) if (shared(self, count))
    for (int64_t r = 0; r < count * B; r++)
        forward_row(self, norm, norm->scratch + omp_get_thread_num() * NORM_SCRATCH * d, first + r / B, r % B);
}

void layer_norm_backward(const Dimension *self, const Norm *norm, int64_t first, int64_t count) {
    const int64_t B = self->B, d = self->d, length = norm->copies * NORM_PARTS * d;
    const int several = shared(self, count);
#pragma omp parallel for num_threads(self->threads) schedule(static) if (several)
    for (int64_t r = 0; r < count * B; r++) {
        /* Each thread has its own sums, which are added in a fixed order: equal from run to run. */
        const int thread = omp_get_thread_num();
        double *sums = norm->sums + thread * 2 * length;
        backward_row(self, norm, norm->scratch + thread * NORM_SCRATCH * d, several ? sums : norm->grad_gain,
                     several ? sums + length : norm->grad_shift, first + r / B, r % B,
                     self->later ? self->later + r * self->h_stride : NULL);
    }
    if (several)
        for (int thread = 0; thread < self->threads; thread++) {
            double *sums = norm->sums + thread * 2 * length;
            for (int64_t i = 0; i < length; i++) norm->grad_gain[i] += sums[i];
            for (int64_t i = 0; i < length; i++) norm->grad_shift[i] += sums[length + i];
            memset(sums, 0, 2 * length * sizeof(double));
        }
}
