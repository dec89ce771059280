/* All layers of a dense network, whose tokens are single queries, in one call: see ../packed_layers.py. */
#include "kernels.h"

/* Rows of a matrix, as qwen3_packed_linear takes them; width: of them, what is written. All fields have 8 bytes. */
typedef struct {
    const uint8_t *data;
    const uint16_t *scales, *mins;
    const int8_t *marks;
    int64_t n, width, bits, group, fine, table;
} Part;

/* parts of qkv, of out, of gate and up, of down: numbers of the first, and one behind the last */
typedef struct {
    const float *norm1, *q_norm, *k_norm, *norm2;
    void *k_cache, *v_cache;
    int64_t parts[5];
} Layer;

typedef struct {
    int64_t rows, threads;
    float eps, *scales;
    int8_t *values;
    int32_t *sums;
} Step;

/* y [rows][stride] (+)= norm(x) by the parts below each other */
static void linear(const Step *step, const Part *from, const Part *to, const float *x, const float *norm,
                   int64_t columns, int add, int silu, float *y, int64_t stride) {
    qwen3_quantize(x, norm, step->eps, step->rows, columns, step->values, step->scales, step->sums, step->threads);
    for (; from < to; y += from->width, from++)
        qwen3_packed_linear(step->values, step->scales, step->sums, step->rows, columns, from->data, from->scales,
                            from->mins, from->marks, from->n, from->bits, from->group, from->fine, from->table,
                            add ? y : 0, silu, y, from->width, stride, step->threads);
}

/* x [rows][hidden] becomes the states behind the last layer. room: floats, for rows times (2 heads + 2 kv) dim + inner
   + widest / 32; values: rows times widest; sums: 2 rows times widest / 32; widest: of hidden, heads dim and inner. */
void qwen3_layers(const Layer *layers, int64_t count, const Part *parts, float *x, int64_t rows, int64_t hidden,
                  int64_t inner, int64_t heads, int64_t kv, int64_t dim, int64_t half, float eps, const float *turns,
                  const int32_t *positions, const int32_t *slots, const int32_t *which, const int32_t *of,
                  const int32_t *lengths, const int32_t *tables, int64_t wide, float *room, int8_t *values,
                  int32_t *sums, int64_t threads) {
    const int64_t width = heads * dim;
    float *qkv = room, *q = qkv + rows * (width + 2 * kv * dim), *h = q + rows * width;
    const Step step = {rows, threads, eps, h + rows * inner, values, sums};
    for (const Layer *layer = layers; layer < layers + count; layer++) {
        const Part *first = parts + layer->parts[0], *out = parts + layer->parts[1], *up = parts + layer->parts[2];
        const Part *down = parts + layer->parts[3], *end = parts + layer->parts[4];
        linear(&step, first, out, x, layer->norm1, hidden, 0, 0, qkv, width + 2 * kv * dim);
        qwen3_rope_cache(qkv, rows, heads, kv, dim, layer->q_norm, layer->k_norm, eps, turns, positions, slots,
                         layer->k_cache, layer->v_cache, half, q, threads);
        qwen3_attend(q, which, of, lengths, rows, heads, kv, dim, layer->k_cache, layer->v_cache, half, tables, wide,
                     qkv, threads);
        linear(&step, out, up, qkv, 0, width, 1, 0, x, hidden);
        linear(&step, up, down, x, layer->norm2, hidden, 0, 1, h, inner);
        linear(&step, down, end, h, 0, inner, 1, 0, x, hidden);
    }
}
