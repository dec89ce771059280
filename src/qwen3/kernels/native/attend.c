/* QK-norm, RoPE, the write into the paged cache and attention, computed in float32: see ../cpu_attend.py.

   Caches of one layer, float32 or (`half`) float16: [blocks][16][kv heads][size of a head, a multiple of 16]. A query's sums over its keys have one
   order, whatever else is in the batch: alone 16 keys at a time, in a chunk 64, with the largest score so far. */
#include "kernels.h"
#include "maths.h"

#define BLOCK 16
#define KEYS 64    /* of a chunk's step */
#define WIDEST 256 /* size of a head */
#define GROUP 16   /* heads that share keys, at most */
#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float Lanes __attribute__((vector_size(64)));
typedef float Loose __attribute__((vector_size(64), aligned(4), may_alias));
#define AT(p) (*(const Loose *)(p))
#define PUT(p, v) (*(Loose *)(p) = (v))

#if defined(__AVX512F__) || (defined(__AVX__) && defined(__F16C__))
#include <immintrin.h>
int64_t qwen3_has_half(void) { return 1; }
INLINE Lanes from_half(const uint16_t *p) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#else
    union { Lanes all; __m256 half[2]; } v;
    for (int i = 0; i < 2; i++) v.half[i] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8 * i)));
    return v.all;
#endif
}
/* what float16 cannot hold becomes its largest number */
INLINE void to_half(uint16_t *p, const float *x) {
    for (int i = 0; i < 2; i++) {
        const __m256 most = _mm256_set1_ps(65504.0f), least = _mm256_set1_ps(-65504.0f);
        const __m256 v = _mm256_min_ps(most, _mm256_max_ps(least, _mm256_loadu_ps(x + 8 * i))); /* NaN stays */
        _mm_storeu_si128((__m128i *)(p + 8 * i), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
}
#else
int64_t qwen3_has_half(void) { return 0; } /* then nobody asks for it */
INLINE Lanes from_half(const uint16_t *p) {
    (void)p;
    return (Lanes){0};
}
INLINE void to_half(uint16_t *p, const float *x) {
    (void)p;
    (void)x;
}
#endif

/* Sixteen numbers of a cache from number `at` on. */
INLINE Lanes load(const void *cache, int64_t at, const int half) {
    if (half) return from_half((const uint16_t *)cache + at);
    return AT((const float *)cache + at);
}

INLINE void store(void *cache, int64_t at, const float *x, int64_t count, int64_t half) {
    if (half)
        for (int64_t j = 0; j < count; j += LANES) to_half((uint16_t *)cache + at + j, x + j);
    else
        memcpy((float *)cache + at, x, sizeof(float) * (size_t)count);
}

INLINE float across(Lanes v) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    union { Lanes all; Eight half[2]; } a = {v};
    union { Eight all; Four half[2]; } b = {a.half[0] + a.half[1]};
    const Four c = b.half[0] + b.half[1];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

static void norm_and_turn(const float *x, const float *weight, float eps, const float *turn, int64_t dim,
                          float *out) {
    Lanes squares = {0};
    float normed[WIDEST];
    const int64_t half = dim / 2;
    for (int64_t j = 0; j < dim; j += LANES) squares += AT(x + j) * AT(x + j);
    const float scale = 1.0f / sqrtf(across(squares) / (float)dim + eps);
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
                      const int32_t *slots, void *k_cache, void *v_cache, int64_t half, float *q, int64_t threads) {
    const int64_t width = (heads + 2 * kv) * dim;
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(static) if (threads > 1 && tokens > 1)
    for (int64_t t = 0; t < tokens; t++) {
        const float *x = qkv + t * width, *turn = turns + positions[t] * dim;
        const int64_t at = (int64_t)slots[t] * kv * dim;
        float key[WIDEST];
        for (int64_t h = 0; h < heads; h++)
            norm_and_turn(x + h * dim, q_weight, eps, turn, dim, q + (t * heads + h) * dim);
        for (int64_t h = 0; h < kv; h++) {
            norm_and_turn(x + (heads + h) * dim, k_weight, eps, turn, dim, key);
            store(k_cache, at + h * dim, key, dim, half);
        }
        store(v_cache, at, x + (heads + kv) * dim, kv * dim, half);
    }
}

/* `n` heads (one or two) of one query over `count` keys of a block, from number `at` of the caches on. own [n][WIDEST], the query, shrunk; sum likewise:
   of the values so far, each times exp(score - peak), and total of these factors. */
INLINE void some_keys(const int n, const int64_t dim, const int half, const float *own, const void *k, const void *v,
                      int64_t at, int64_t stride, int64_t count, float *peak, float *total, float *sum) {
    float score[2][BLOCK], shrink[2];
    for (int64_t i = 0; i < count; i++) {
        Lanes dot[2] = {{0}, {0}};
        for (int64_t j = 0; j < dim; j += LANES) {
            const Lanes key = load(k, at + i * stride + j, half);
            for (int g = 0; g < n; g++) dot[g] += AT(own + g * WIDEST + j) * key;
        }
        for (int g = 0; g < n; g++) score[g][i] = across(dot[g]);
    }
    for (int g = 0; g < n; g++) {
        float largest = peak[g], all = 0.0f;
        for (int64_t i = 0; i < count; i++) largest = score[g][i] > largest ? score[g][i] : largest;
        for (int64_t i = count; i < BLOCK; i++) score[g][i] = -INFINITY;
        shrink[g] = exp_of(peak[g] - largest);
        for (int64_t i = 0; i < BLOCK; i++) score[g][i] = exp_of(score[g][i] - largest);
        for (int64_t i = 0; i < count; i++) all += score[g][i];
        total[g] = total[g] * shrink[g] + all;
        peak[g] = largest;
    }
    const int wide = dim % (4 * LANES) ? 1 : 4; /* vectors at a time: sums that do not wait for each other */
    for (int64_t j = 0; j < dim; j += wide * LANES) {
        Lanes part[2][4];
        for (int g = 0; g < n; g++)
            for (int w = 0; w < wide; w++) part[g][w] = AT(sum + g * WIDEST + j + w * LANES) * shrink[g];
        for (int64_t i = 0; i < count; i++)
            for (int w = 0; w < wide; w++) {
                const Lanes value = load(v, at + i * stride + j + w * LANES, half);
                for (int g = 0; g < n; g++) part[g][w] += score[g][i] * value;
            }
        for (int g = 0; g < n; g++)
            for (int w = 0; w < wide; w++) PUT(sum + g * WIDEST + j + w * LANES, part[g][w]);
    }
}

/* One query of `group` heads over `length` keys of one kv head, number `head` of the caches' rows. q, out [group][dim]. */
INLINE void one(const int64_t dim, const int half, const float *q, int64_t group, const void *k_cache,
                const void *v_cache, int64_t head, int64_t kv, const int32_t *table, int64_t length, float *out) {
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
        const int64_t at = ((int64_t)table[first / BLOCK] * BLOCK * kv + head) * dim;
#define KEYS_OF(n_) \
    some_keys(n_, dim, half, own[g], k_cache, v_cache, at, kv * dim, count, peak + g, total + g, sum[g])
        int64_t g = 0;
        for (; g + 2 <= group; g += 2) KEYS_OF(2);
        if (g < group) KEYS_OF(1);
    }
    for (int64_t g = 0; g < group; g++)
        for (int64_t j = 0; j < dim; j++) out[g * dim + j] = sum[g][j] / total[g];
}

/* Queries number which[i] of q [tokens][heads dim], each over lengths[i] keys in the blocks of its row of tables
   [rows][wide], number rows[i]; results go to the same places of out. */
void qwen3_attend(const float *q, const int32_t *which, const int32_t *rows, const int32_t *lengths, int64_t count,
                  int64_t heads, int64_t kv, int64_t dim, const void *k_cache, const void *v_cache, int64_t half,
                  const int32_t *tables, int64_t wide, float *out, int64_t threads) {
    const int64_t group = heads / kv;
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(dynamic) if (threads > 1)
    for (int64_t n = 0; n < count * kv; n++) {
        const int64_t i = n / kv, h = n % kv, at = ((int64_t)which[i] * heads + h * group) * dim;
#define ONE(dim_, half_) \
    one(dim_, half_, q + at, group, k_cache, v_cache, h, kv, tables + rows[i] * wide, lengths[i], out + at)
        if (dim == 128 && half) /* 128: as all published models have it */
            ONE(128, 1);
        else if (dim == 128)
            ONE(128, 0);
        else if (half)
            ONE(dim, 1);
        else
            ONE(dim, 0);
    }
}

/* Sixteen queries of `n` heads (one or two), side by side in the lanes, over the keys before `length`; each sees those
   up to its own place, last[lane]. q, out: of lane 0's head, `lanes` of them valid, `row` apart. */
INLINE void tile(const int n, const int64_t dim, const float *q, int64_t lanes, int64_t row, const void *k_cache,
                 const void *v_cache, int64_t half, int64_t head, int64_t kv, const int32_t *table, int64_t length,
                 const int64_t *last, float *out) {
    Lanes own[2][WIDEST], sum[2][WIDEST], score[KEYS][2], peak[2], total[2] = {{0}, {0}};
    const float *k[KEYS], *v[KEYS], shrunk = 1.0f / sqrtf((float)dim);
    float wide[2][KEYS][WIDEST]; /* keys and values, where the caches are in float16 */
    for (int g = 0; g < n; g++) {
        for (int l = 0; l < LANES; l++) {
            const float *from = q + (l < lanes ? l : lanes - 1) * row + g * dim;
            peak[g][l] = -INFINITY;
            for (int64_t j = 0; j < dim; j++) own[g][j][l] = from[j] * shrunk;
        }
        memset(sum[g], 0, sizeof(Lanes) * (size_t)dim);
    }
    for (int64_t first = 0; first < length; first += KEYS) {
        const int64_t count = length - first < KEYS ? length - first : KEYS;
        for (int64_t i = 0; i < (count + BLOCK - 1) / BLOCK * BLOCK; i++) {
            const int64_t at = (((int64_t)table[(first + i) / BLOCK] * BLOCK + i % BLOCK) * kv + head) * dim;
            if (half)
                for (int64_t j = 0; j < dim; j += LANES) {
                    PUT(wide[0][i] + j, from_half((const uint16_t *)k_cache + at + j));
                    PUT(wide[1][i] + j, from_half((const uint16_t *)v_cache + at + j));
                }
            k[i] = half ? wide[0][i] : (const float *)k_cache + at;
            v[i] = half ? wide[1][i] : (const float *)v_cache + at;
        }
        for (int64_t i = 0; i < count; i += 8) { /* the last eight may reach beyond the keys, not beyond their block */
            Lanes dot[8][2];
            memset(dot, 0, sizeof dot);
            for (int64_t j = 0; j < dim; j++)
                for (int r = 0; r < 8; r++)
                    for (int g = 0; g < n; g++) dot[r][g] += own[g][j] * k[i + r][j];
            for (int r = 0; r < 8; r++)
                for (int g = 0; g < n; g++) score[i + r][g] = dot[r][g];
        }
        Lanes shrink[2];
        for (int g = 0; g < n; g++) {
            float largest[LANES], part[LANES] = {0};
            for (int l = 0; l < LANES; l++) largest[l] = peak[g][l];
            for (int64_t i = 0; i < count; i++)
                for (int l = 0; l < LANES; l++) {
                    const float s = first + i <= last[l] ? score[i][g][l] : -INFINITY;
                    largest[l] = s > largest[l] ? s : largest[l];
                }
            for (int64_t i = 0; i < count; i++)
                for (int l = 0; l < LANES; l++) {
                    const float e = exp_of(score[i][g][l] - largest[l]);
                    score[i][g][l] = first + i <= last[l] ? e : 0.0f;
                    part[l] += score[i][g][l];
                }
            for (int l = 0; l < LANES; l++) {
                shrink[g][l] = exp_of(peak[g][l] - largest[l]);
                total[g][l] = total[g][l] * shrink[g][l] + part[l];
                peak[g][l] = largest[l];
            }
        }
        for (int64_t j = 0; j < dim; j += 8) {
            Lanes part[8][2];
            for (int r = 0; r < 8; r++)
                for (int g = 0; g < n; g++) part[r][g] = sum[g][j + r] * shrink[g];
            for (int64_t i = 0; i < count; i++)
                for (int r = 0; r < 8; r++)
                    for (int g = 0; g < n; g++) part[r][g] += score[i][g] * v[i][j + r];
            for (int r = 0; r < 8; r++)
                for (int g = 0; g < n; g++) sum[g][j + r] = part[r][g];
        }
    }
    for (int g = 0; g < n; g++)
        for (int l = 0; l < lanes; l++)
            for (int64_t j = 0; j < dim; j++) out[l * row + g * dim + j] = sum[g][j][l] / total[g][l];
}

/* The last `count` of `length` tokens of one sequence, whose queries are q [count][heads dim]; causal. */
void qwen3_attend_chunk(const float *q, int64_t count, int64_t length, int64_t heads, int64_t kv, int64_t dim,
                        const void *k_cache, const void *v_cache, int64_t half, const int32_t *table, float *out,
                        int64_t threads) {
    const int64_t group = heads / kv, pairs = (group + 1) / 2, tiles = (count + LANES - 1) / LANES;
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(dynamic) if (threads > 1)
    for (int64_t n = 0; n < tiles * kv * pairs; n++) {
        const int64_t first = (tiles - 1 - n / (kv * pairs)) * LANES; /* those with most keys before the others */
        const int64_t h = n % (kv * pairs) / pairs, head = h * group + n % pairs * 2;
        const int64_t lanes = count - first < LANES ? count - first : LANES, at = (first * heads + head) * dim;
        const int64_t seen = length - count + first + lanes;
        int64_t last[LANES];
        for (int l = 0; l < LANES; l++) last[l] = length - count + first + l;
#define TILE(n_, dim_) \
    tile(n_, dim_, q + at, lanes, heads * dim, k_cache, v_cache, half, h, kv, table, seen, last, out + at)
        if (n % pairs * 2 + 2 > group)
            TILE(1, dim);
        else if (dim == 128)
            TILE(2, 128);
        else
            TILE(2, dim);
    }
}
