/* QK-norm, RoPE, the write into the paged cache and attention of single queries, all in float32: see ../cpu.py.

   A query's sum over its keys has one order, 16 keys at a time with the largest score so far, whatever else is in the
   batch. Caches of one layer: [blocks][16][kv heads][size of a head]. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "maths.h"

#define BLOCK 16
#define WIDEST 256 /* size of a head */
#define GROUP 16   /* heads that share keys, at most */

static void norm_and_turn(const float *x, const float *weight, float eps, const float *turn, int64_t dim,
                          float *out) {
    float square = 0.0f, normed[WIDEST];
    const int64_t half = dim / 2;
#pragma omp simd reduction(+ : square)
    for (int64_t j = 0; j < dim; j++) square += x[j] * x[j];
    const float scale = 1.0f / sqrtf(square / (float)dim + eps);
    for (int64_t j = 0; j < dim; j++) normed[j] = x[j] * scale * weight[j];
    for (int64_t j = 0; j < half; j++) {
        const float a = normed[j], b = normed[j + half], c = turn[j], s = turn[j + half];
        out[j] = a * c - b * s;
        out[j + half] = b * c + a * s;
    }
}

/* qkv [tokens][(heads + 2 kv) dim] -> q [tokens][heads dim]; keys and values to their slots.
   turns [positions][dim]: cosines, then sines. */
void qwen3_rope_cache(const float *qkv, int64_t tokens, int64_t heads, int64_t kv, int64_t dim, const float *q_weight,
                      const float *k_weight, float eps, const float *turns, const int32_t *positions,
                      const int32_t *slots, float *k_cache, float *v_cache, float *q, int64_t threads) {
    const int64_t width = (heads + 2 * kv) * dim;
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(static) if (threads > 1 && tokens > 7)
    for (int64_t t = 0; t < tokens; t++) {
        const float *x = qkv + t * width, *turn = turns + positions[t] * dim;
        for (int64_t h = 0; h < heads; h++)
            norm_and_turn(x + h * dim, q_weight, eps, turn, dim, q + (t * heads + h) * dim);
        for (int64_t h = 0; h < kv; h++)
            norm_and_turn(x + (heads + h) * dim, k_weight, eps, turn, dim,
                          k_cache + ((int64_t)slots[t] * kv + h) * dim);
        memcpy(v_cache + (int64_t)slots[t] * kv * dim, x + (heads + kv) * dim, sizeof(float) * (size_t)(kv * dim));
    }
}

/* One query of `group` heads over `length` keys of one kv head. q, out [group][dim]. */
static void one(const float *q, int64_t group, int64_t dim, const float *k_cache, const float *v_cache, int64_t kv,
                const int32_t *table, int64_t length, float *out) {
    float peak[GROUP], total[GROUP], sum[GROUP][WIDEST], own[GROUP][WIDEST];
    const float shrunk = 1.0f / sqrtf((float)dim);
    for (int64_t g = 0; g < group; g++) {
        peak[g] = -INFINITY;
        total[g] = 0.0f;
        for (int64_t j = 0; j < dim; j++) own[g][j] = q[g * dim + j] * shrunk;
        memset(sum[g], 0, sizeof(float) * (size_t)dim);
    }
    for (int64_t first = 0; first < length; first += BLOCK) {
        const int64_t count = length - first < BLOCK ? length - first : BLOCK;
        const int64_t at = (int64_t)table[first / BLOCK] * BLOCK * kv * dim;
        float score[GROUP][BLOCK];
        for (int64_t i = 0; i < count; i++) {
            const float *k = k_cache + at + i * kv * dim;
            for (int64_t g = 0; g < group; g++) {
                float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
                for (int64_t j = 0; j < dim; j++) dot += own[g][j] * k[j];
                score[g][i] = dot;
            }
        }
        for (int64_t g = 0; g < group; g++) {
            float largest = peak[g], all = 0.0f;
            for (int64_t i = 0; i < count; i++) largest = score[g][i] > largest ? score[g][i] : largest;
            for (int64_t i = count; i < BLOCK; i++) score[g][i] = -INFINITY;
            const float shrink = exp_of(peak[g] - largest);
            for (int64_t i = 0; i < BLOCK; i++) score[g][i] = exp_of(score[g][i] - largest);
            for (int64_t i = 0; i < count; i++) all += score[g][i];
            if (largest > peak[g])
                for (int64_t j = 0; j < dim; j++) sum[g][j] *= shrink;
            total[g] = total[g] * shrink + all;
            peak[g] = largest;
        }
        for (int64_t i = 0; i < count; i++) {
            const float *v = v_cache + at + i * kv * dim;
            for (int64_t g = 0; g < group; g++) {
                const float weight = score[g][i];
                for (int64_t j = 0; j < dim; j++) sum[g][j] += weight * v[j];
            }
        }
    }
    for (int64_t g = 0; g < group; g++)
        for (int64_t j = 0; j < dim; j++) out[g * dim + j] = sum[g][j] / total[g];
}

/* Queries number which[i] of q [tokens][heads dim], each over lengths[i] keys in the blocks of its row of tables
   [rows][wide], number rows[i]; results go to the same places of out. */
void qwen3_attend(const float *q, const int32_t *which, const int32_t *rows, const int32_t *lengths, int64_t count,
                  int64_t heads, int64_t kv, int64_t dim, const float *k_cache, const float *v_cache,
                  const int32_t *tables, int64_t wide, float *out, int64_t threads) {
    const int64_t group = heads / kv;
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(dynamic) if (threads > 1)
    for (int64_t n = 0; n < count * kv; n++) {
        const int64_t i = n / kv, h = n % kv, at = ((int64_t)which[i] * heads + h * group) * dim;
        one(q + at, group, dim, k_cache + h * dim, v_cache + h * dim, kv, tables + rows[i] * wide, lengths[i],
            out + at);
    }
}
