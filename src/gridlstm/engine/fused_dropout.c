/* Dropout of the operands of products, and its gradient: elements times drop * scale, in one pass over memory. GCC makes
 * vectors of the inner loops.
 */
#include "fused.h"

static inline float float_of(uint16_t low) {
    const uint32_t b = (uint32_t)low << 16;
    float x;
    memcpy(&x, &b, sizeof x);
    return x;
}

/* As store_low. */
static inline uint16_t low_of(float x) {
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    const uint32_t rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    return x != x ? 0x7fc0 : rounded;
}

/* Factors of rows of d elements. */
typedef struct {
    const uint8_t *drop; /* (rows, drop_stride) */
    const float *scale;  /* (d,) */
    int64_t rows, d;
    int64_t drop_stride, source_stride, target_stride; /* elements from a row to the next */
    int32_t threads;
} Factors;

/* x times its factors goes to out or, in bfloat16, to low_out. */
void dropout_forward(const Factors *self, const float *x, float *out, uint16_t *low_out) {
    const int64_t d = self->d;
    const float *restrict scale = self->scale;
#pragma omp parallel for num_threads(self->threads) if (self->threads > 1 && self->rows * d > ONE_THREAD)
    for (int64_t row = 0; row < self->rows; row++) {
        const uint8_t *restrict drop = self->drop + row * self->drop_stride;
        const float *restrict from = x + row * self->source_stride;
        if (low_out) {
            uint16_t *restrict to = low_out + row * self->target_stride;
            for (int64_t i = 0; i < d; i++) to[i] = low_of(from[i] * (drop[i] * scale[i]));
        } else {
            float *restrict to = out + row * self->target_stride;
            for (int64_t i = 0; i < d; i++) to[i] = from[i] * (drop[i] * scale[i]);
        }
    }
}

/* The gradient of an operand or, in bfloat16, low_gradient, times its factors, replaces `to` or is added to it. */
void dropout_backward(const Factors *self, const float *gradient, const uint16_t *low_gradient, float *to,
                      int32_t add) {
    const int64_t d = self->d;
    const float *restrict scale = self->scale;
#pragma omp parallel for num_threads(self->threads) if (self->threads > 1 && self->rows * d > ONE_THREAD)
    for (int64_t row = 0; row < self->rows; row++) {
        const uint8_t *restrict drop = self->drop + row * self->drop_stride;
        float *restrict sum = to + row * self->target_stride;
        if (!add) memset(sum, 0, d * sizeof(float));
        if (low_gradient) {
            const uint16_t *restrict from = low_gradient + row * self->source_stride;
            for (int64_t i = 0; i < d; i++) sum[i] += float_of(from[i]) * (drop[i] * scale[i]);
        } else {
            const float *restrict from = gradient + row * self->source_stride;
            for (int64_t i = 0; i < d; i++) sum[i] += from[i] * (drop[i] * scale[i]);
        }
    }
}
