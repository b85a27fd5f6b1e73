/* The chain of one layer: for each step, the recurrent product and the pointwise step, in one call.
 *
 * In small networks, starting two operations a step takes as long as computing them. Rows of a batch are independent,
 * so each thread computes its rows through the whole chain, and threads never wait for each other.
 *
 * A weight (inner, columns) is stored in panels of PANEL columns, (panels, inner, PANEL), the last one filled with
 * zeros: the panel of a product stays in the cache, and no address is far from the one before.
 */
#include "fused.h"

#define PANEL (2 * V)
/* Rows that a product computes at once: two registers each, beside two of the weight. */
#if defined __AVX512F__
#define MOST_ROWS 14
#else
#define MOST_ROWS 6
#endif

int64_t lstm_panel(void) { return PANEL; }

/* out += x panel, for `rows` rows of `width` columns; rows and vectors (1 or 2) are constants wherever it is called. */
static inline __attribute__((always_inline)) void tile(float *out, int64_t out_stride, const float *x, int64_t x_stride,
                                                       const float *panel, int64_t inner, int64_t width,
                                                       const int rows, const int vectors) {
    /* Unrolled completely, so that all sums are in registers. */
    vec sum[MOST_ROWS][2];
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) sum[r][j] = all(0.0f);
#pragma GCC unroll 1
    for (int64_t k = 0; k < inner; k++) {
        vec w[2];
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) w[j] = load(panel + k * PANEL + j * V);
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            const vec value = all(x[r * x_stride + k]);
#pragma GCC unroll 2
            for (int j = 0; j < vectors; j++) sum[r][j] += value * w[j];
        }
    }
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) {
            float *to = out + r * out_stride + j * V;
            const int64_t n = part(j * V, width);
            if (n == V)
                store(to, load(to) + sum[r][j]);
            else
                store_some(to, load_some(to, n) + sum[r][j], n);
        }
}

#define TILE(R) \
    case R: \
        if (width > V) \
            tile(out, out_stride, x, x_stride, panel, inner, width, R, 2); \
        else \
            tile(out, out_stride, x, x_stride, panel, inner, width, R, 1); \
        break;

static void few_rows(float *out, int64_t out_stride, const float *x, int64_t x_stride, const float *panel,
                     int64_t inner, int64_t width, int64_t rows) {
    switch (rows) {
        TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
#if MOST_ROWS > 6
        TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)
#endif
    }
}

/* out += x weight */
static void add_product(float *out, int64_t out_stride, const float *x, int64_t x_stride, const float *weight,
                        int64_t inner, int64_t columns, int64_t rows) {
    const int64_t pieces = (rows + MOST_ROWS - 1) / MOST_ROWS;
    for (int64_t c = 0; c < columns; c += PANEL)
        for (int64_t p = 0; p < pieces; p++) {
            const int64_t begin = rows * p / pieces, end = rows * (p + 1) / pieces;
            const int64_t width = columns - c < PANEL ? columns - c : PANEL;
            few_rows(out + begin * out_stride + c, out_stride, x + begin * x_stride, x_stride,
                     weight + c * inner, inner, width, end - begin);
        }
}

/* z += h weight for some rows, with z in bfloat16. */
static void add_product_low(const Dimension *self, const float *weight, int64_t row, float *scratch, int64_t rows) {
    const int64_t d = self->d, gates = 4 * d;
    memset(scratch, 0, rows * gates * sizeof(float));
    add_product(scratch, gates, self->h[self->stage] + row * self->h_stride, self->h_stride, weight, d, gates, rows);
    for (int64_t r = 0; r < rows; r++) {
        uint16_t *z = self->low_z + (row + r) * self->z_stride;
        for (int64_t i = 0; i < gates; i += V) {
            const int64_t n = part(i, gates);
            store_low(z + i, load_low(z + i, n) + load_some(scratch + r * gates + i, n), n);
        }
    }
}

/* Some rows of the gradient of z from bfloat16 to float. */
static void widen(const Dimension *self, int64_t row, float *scratch, int64_t rows) {
    const int64_t gates = 4 * self->d;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < gates; i += V) {
            const int64_t n = part(i, gates);
            store_some(scratch + r * gates + i, load_low(self->low_z + (row + r) * self->z_stride + i, n), n);
        }
}

/* Steps first to first + count - 1, one block each. z already has all but the product of h with weight (d, 4 d). */
void lstm_chain_forward(const Dimension *self, const float *weight, int64_t first, int64_t count) {
    const int64_t B = self->B, d = self->d;
#pragma omp parallel num_threads(self->threads) if (shared(self, count))
    {
        const Share own = share_of(B);
        const int64_t rows = own.until - own.begin;
        for (int64_t t = first; t < first + count && rows > 0; t++) {
            const int64_t row = t * B + own.begin;
            if (self->low_z)
                add_product_low(self, weight, row, self->scratch + own.begin * 4 * d, rows);
            else
                add_product(self->z + row * self->z_stride, self->z_stride,
                            self->h[self->stage] + row * self->h_stride, self->h_stride, weight, d, 4 * d, rows);
            lstm_forward_rows(self, t, own.begin, own.until);
        }
    }
}

/* The same steps backwards; adds the gradient of h through the product with weight (4 d, d). */
void lstm_chain_backward(const Dimension *self, const float *weight, int64_t first, int64_t count) {
    const int64_t B = self->B, d = self->d;
#pragma omp parallel num_threads(self->threads) if (shared(self, count))
    {
        const Share own = share_of(B);
        const int64_t rows = own.until - own.begin;
        for (int64_t t = first + count - 1; t >= first && rows > 0; t--) {
            const int64_t row = t * B + own.begin;
            lstm_backward_rows(self, t, own.begin, own.until);
            float *grad_h = self->grad_h + row * self->h_stride;
            if (self->low_z) {
                float *grad_z = self->scratch + own.begin * 4 * d;
                widen(self, row, grad_z, rows);
                add_product(grad_h, self->h_stride, grad_z, 4 * d, weight, 4 * d, d, rows);
            } else
                add_product(grad_h, self->h_stride, self->z + row * self->z_stride, self->z_stride, weight, 4 * d, d,
                            rows);
        }
        if (self->grad_bias) lstm_flush_bias_sums(self, self->copy_of ? self->copy_of[first] : 0);
    }
}
