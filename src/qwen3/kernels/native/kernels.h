/* What the kernels' files call of each other; each is described where it is defined. */
#ifndef QWEN3_KERNELS_H
#define QWEN3_KERNELS_H
#include <stdint.h>

void qwen3_quantize(const float *x, const float *norm, float eps, int64_t rows, int64_t columns, int8_t *values,
                    float *scales, int32_t *sums, int64_t threads);
void qwen3_packed_linear(const int8_t *values, const float *scales, const int32_t *sums, int64_t rows, int64_t columns,
                         const uint8_t *w, const uint16_t *w_scales, const uint16_t *w_mins, const int8_t *w_marks,
                         int64_t n, int64_t bits, int64_t group, int64_t fine, int64_t table, const float *residual,
                         int64_t silu, float *y, int64_t width, int64_t stride, int64_t threads);
void qwen3_rope_cache(const float *qkv, int64_t tokens, int64_t heads, int64_t kv, int64_t dim, const float *q_weight,
                      const float *k_weight, float eps, const float *turns, const int32_t *positions,
                      const int32_t *slots, void *k_cache, void *v_cache, int64_t half, float *q, int64_t threads);
void qwen3_attend(const float *q, const int32_t *which, const int32_t *rows, const int32_t *lengths, int64_t count,
                  int64_t heads, int64_t kv, int64_t dim, const void *k_cache, const void *v_cache, int64_t half,
                  const int32_t *tables, int64_t wide, float *out, int64_t threads);
#endif
