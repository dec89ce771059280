/* Products with weights of 4 or 8 bits on a CPU: see packed.py, which says what is computed and holds the plain twin.

   Layout. Sixteen rows of the weight stand side by side, so that a vector holds one number of each and no sum is ever
   taken across a vector. 64 bytes are 16 rows x 4 columns of 8 bits, or 16 rows x 8 columns of 4 bits (columns 0-3 in
   the low halves of the bytes, 4-7 in the high ones). Scales: [row block][group][16] float16.

   Activations come as int8 with a float32 scale for every 32. Sums of 32 products are exact integers; the float32
   additions that follow them have one order. So a row's result does not depend on what else is in the batch, on the
   number of threads, or on how the columns are cut. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define LANES 16
#define SPAN 32 /* activations that share a scale */

typedef struct {
    const int8_t *values;  /* [rows][columns] */
    const float *scales;   /* [rows][columns / SPAN] */
    const int32_t *sums;   /* [rows][columns / SPAN], of the values, negative */
    int64_t columns;
} Acts;

/* rows of x, through rms_norm where norm is given, to int8. */
static void quantize_row(const float *x, const float *norm, float eps, int64_t columns, int8_t *values, float *scales,
                         int32_t *sums) {
    float factor = 1.0f;
    if (norm) {
        float lanes[SPAN] = {0};
        double square = 0.0;
        for (int64_t i = 0; i < columns; i += SPAN)
            for (int j = 0; j < SPAN; j++) lanes[j] += x[i + j] * x[i + j];
        for (int j = 0; j < SPAN; j++) square += lanes[j];
        factor = (float)(1.0 / sqrt(square / (double)columns + (double)eps));
    }
    for (int64_t i = 0; i < columns; i += SPAN) {
        float held[SPAN], peak;
        int32_t largest = 0, bits[SPAN]; /* the bits of floats without a sign are ordered as the floats are, NaN last */
        for (int j = 0; j < SPAN; j++) held[j] = norm ? x[i + j] * factor * norm[i + j] : x[i + j];
        memcpy(bits, held, sizeof bits);
        for (int j = 0; j < SPAN; j++) largest = (bits[j] & 0x7fffffff) > largest ? bits[j] & 0x7fffffff : largest;
        memcpy(&peak, &largest, 4);
        const float scale = peak / 127.0f, inverse = peak > 0.0f ? 127.0f / peak : 0.0f;
        int32_t sum = 0;
        for (int j = 0; j < SPAN; j++) {
            int32_t q = (int32_t)rintf(held[j] * inverse);
            values[i + j] = (int8_t)q;
            sum -= q;
        }
        scales[i / SPAN] = scale;
        sums[i / SPAN] = sum;
    }
}

void qwen3_quantize(const float *x, const float *norm, float eps, int64_t rows, int64_t columns, int8_t *values,
                    float *scales, int32_t *sums, int64_t threads) {
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(static) if (rows >= 8 && threads > 1)
    for (int64_t r = 0; r < rows; r++)
        quantize_row(x + r * columns, norm, eps, columns, values + r * columns, scales + r * (columns / SPAN),
                     sums + r * (columns / SPAN));
}

static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023, bits;
    if (exponent == 0) {
        float small = (float)mantissa * 5.9604644775390625e-8f;
        return sign ? -small : small;
    }
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (mantissa << 13);
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

/* One block of 16 weight rows times `count` (1 to TILE) rows of activations: out[m][0..15] += the products. */
#define TILE 8
#if defined(__clang__) || !defined(__GNUC__)
#define EACH for (int m = 0; m < count; m++)
#else
#define EACH _Pragma("GCC unroll 8") for (int m = 0; m < count; m++)
#endif

#if defined(__AVX512F__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define PATH "AVX-512 VNNI"
#define FOUR(at) _mm512_broadcastd_epi32(_mm_loadu_si32(at)) /* from memory: a register would cost the busiest port */
static inline __attribute__((always_inline)) void block(const uint8_t *w, const uint16_t *scales, const uint16_t *mins,
                                                        const int bits, int64_t group, const Acts *a, int64_t first,
                                                        const int count, float (*out)[LANES]) {
    const int64_t columns = a->columns, spans = columns / SPAN, per = group / SPAN;
    const __m512i low = _mm512_set1_epi8(15);
    const int shift = bits == 4 ? 3 : 7; /* zero is 8 or 128 */
    __m512 total[TILE];
    EACH total[m] = _mm512_setzero_ps();
    for (int64_t s = 0; s < spans; s += per, scales += LANES) {
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
        __m512 inner[TILE], least[TILE];
        EACH inner[m] = least[m] = _mm512_setzero_ps();
        for (int64_t t = s; t < s + per; t++) {
            __m512i sum[TILE];
            EACH sum[m] = mins ? _mm512_setzero_si512() : _mm512_slli_epi32(FOUR(a->sums + (first + m) * spans + t), shift);
            const int8_t *x = a->values + first * columns + t * SPAN;
            if (bits == 4) {
                for (int q = 0; q < SPAN / 8; q++, w += 64) {
                    const __m512i both = _mm512_loadu_si512(w);
                    const __m512i lo = _mm512_and_si512(both, low);
                    const __m512i hi = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
                    EACH {
                        const int8_t *at = x + m * columns + 8 * q;
                        sum[m] = _mm512_dpbusd_epi32(sum[m], lo, FOUR(at));
                        sum[m] = _mm512_dpbusd_epi32(sum[m], hi, FOUR(at + 4));
                    }
                }
            } else {
                for (int q = 0; q < SPAN / 4; q++, w += 64) {
                    const __m512i four_of = _mm512_loadu_si512(w);
                    EACH {
                        sum[m] = _mm512_dpbusd_epi32(sum[m], four_of, FOUR(x + m * columns + 4 * q));
                    }
                }
            }
            EACH {
                const float own = a->scales[(first + m) * spans + t];
                inner[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[m]), _mm512_set1_ps(own), inner[m]);
                if (mins)
                    least[m] = _mm512_add_ps(least[m], _mm512_set1_ps(-own * (float)a->sums[(first + m) * spans + t]));
            }
        }
        EACH total[m] = _mm512_fmadd_ps(inner[m], scale, total[m]);
        if (mins) {
            const __m512 least_of = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)mins));
            EACH total[m] = _mm512_fmadd_ps(least[m], least_of, total[m]);
            mins += LANES;
        }
    }
    EACH _mm512_storeu_ps(out[m], total[m]);
}
#else
#if defined(__AVX2__)
#define PATH "AVX2"
static inline __m256i dot4(__m256i w, int32_t four, int bits) { /* w: 32 unsigned bytes, four signed ones repeated */
    const __m256i x = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
    if (bits == 8) { /* unsigned 255 times 127 twice would not fit into 16 bits: |w| times x with w's sign does */
        w = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
        return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), ones);
    }
    return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones);
}
#else
#define PATH "plain C"
#endif
static inline void block(const uint8_t *w, const uint16_t *scales, const uint16_t *mins, int bits, int64_t group,
                         const Acts *a, int64_t first, const int count, float (*out)[LANES]) {
    const int64_t columns = a->columns, spans = columns / SPAN, per = group / SPAN, bytes = SPAN * LANES * bits / 8;
    EACH {
        const uint8_t *own_w = w;
        float total[LANES] = {0};
        for (int64_t s = 0, g = 0; s < spans; s += per, g++) {
            float inner[LANES] = {0}, least = 0.0f;
            for (int64_t t = s; t < s + per; t++, own_w += bytes) {
                const int8_t *x = a->values + (first + m) * columns + t * SPAN;
                const int32_t all = a->sums[(first + m) * spans + t];
                const float own = a->scales[(first + m) * spans + t];
                int32_t sum[LANES];
#if defined(__AVX2__)
                const __m256i low = _mm256_set1_epi8(15);
                const int start = mins ? 0 : bits == 4 ? 8 * all : 0;
                __m256i left = _mm256_set1_epi32(start), right = left;
                for (int q = 0; q < bytes / 64; q++) {
                    __m256i one = _mm256_loadu_si256((const __m256i *)(own_w + 64 * q));
                    __m256i two = _mm256_loadu_si256((const __m256i *)(own_w + 64 * q + 32));
                    int32_t four[2];
                    if (bits == 8) {
                        memcpy(four, x + 4 * q, 4);
                    } else {
                        memcpy(four, x + 8 * q, 8);
                        left = _mm256_add_epi32(
                            left, dot4(_mm256_and_si256(_mm256_srli_epi16(one, 4), low), four[1], 4));
                        right = _mm256_add_epi32(
                            right, dot4(_mm256_and_si256(_mm256_srli_epi16(two, 4), low), four[1], 4));
                        one = _mm256_and_si256(one, low);
                        two = _mm256_and_si256(two, low);
                    }
                    left = _mm256_add_epi32(left, dot4(one, four[0], bits));
                    right = _mm256_add_epi32(right, dot4(two, four[0], bits));
                }
                _mm256_storeu_si256((__m256i *)sum, left);
                _mm256_storeu_si256((__m256i *)(sum + 8), right);
#else
                const int32_t start = mins ? 0 : (bits == 4 ? 8 : 128) * all;
                for (int n = 0; n < LANES; n++) sum[n] = start;
                for (int q = 0; q < bytes / 64; q++)
                    for (int n = 0; n < LANES; n++)
                        for (int j = 0; j < 4; j++) {
                            const int32_t v = own_w[64 * q + 4 * n + j];
                            if (bits == 8)
                                sum[n] += v * x[4 * q + j];
                            else
                                sum[n] += (v & 15) * x[8 * q + j] + (v >> 4) * x[8 * q + 4 + j];
                        }
#endif
                for (int n = 0; n < LANES; n++) inner[n] = fmaf((float)sum[n], own, inner[n]);
                least -= own * (float)all;
            }
            for (int n = 0; n < LANES; n++) total[n] = fmaf(inner[n], half_to_float(scales[g * LANES + n]), total[n]);
            if (mins)
                for (int n = 0; n < LANES; n++)
                    total[n] = fmaf(least, half_to_float(mins[g * LANES + n]), total[n]);
        }
        memcpy(out[m], total, sizeof total);
    }
}
#endif

const char *qwen3_path(void) { return PATH; }

static void any_block(const uint8_t *w, const uint16_t *scales, const uint16_t *mins, int bits, int64_t group,
                      const Acts *a, int64_t first, int count, float (*out)[LANES]) {
#define CASE(bits_, count_) \
    case count_: \
        if (mins) \
            block(w, scales, mins, bits_, group, a, first, count_, out); \
        else \
            block(w, scales, 0, bits_, group, a, first, count_, out); \
        break;
#define CASES(bits_) \
    switch (count) { \
        CASE(bits_, 1) CASE(bits_, 2) CASE(bits_, 3) CASE(bits_, 4) \
        CASE(bits_, 5) CASE(bits_, 6) CASE(bits_, 7) CASE(bits_, 8) \
    }
    if (bits == 4) {
        CASES(4)
    } else {
        CASES(8)
    }
}

/* exp(x) to about 2 ulp, without branches, so that compilers turn loops of it into vectors */
static inline float exp_of(float x) {
    x = fminf(fmaxf(x, -87.0f), 88.0f) * 1.44269504f;
    const float whole = rintf(x), part = x - whole;
    float p = 1.5403530e-4f;
    p = fmaf(p, part, 1.3333558e-3f);
    p = fmaf(p, part, 9.6181291e-3f);
    p = fmaf(p, part, 5.5504109e-2f);
    p = fmaf(p, part, 2.4022651e-1f);
    p = fmaf(p, part, 6.9314718e-1f);
    p = fmaf(p, part, 1.0f);
    int32_t bits = ((int32_t)whole + 127) << 23;
    float two;
    memcpy(&two, &bits, 4);
    return p * two;
}

/* y[rows][width] = x @ w^T (+ residual); silu: w holds gate rows, then up rows, y is silu(gate) * up [rows][n / 2].
   n: rows of the weight, a multiple of 16 (32 with silu) in memory; width: those that are written. */
void qwen3_packed_linear(const int8_t *values, const float *scales, const int32_t *sums, int64_t rows, int64_t columns,
                         const uint8_t *w, const uint16_t *w_scales, const uint16_t *w_mins, int64_t n, int64_t bits,
                         int64_t group, const float *residual, int64_t silu, float *y, int64_t width,
                         int64_t threads) {
    const Acts acts = {values, scales, sums, columns};
    const int64_t bytes = columns * LANES * bits / 8, marks = columns / group * LANES;
    const int64_t blocks = n / LANES / (silu ? 2 : 1);
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(static) if (threads > 1)
    for (int64_t b = 0; b < blocks; b++) {
        float out[TILE][LANES], up[TILE][LANES];
        const int64_t at = b * LANES, wide = width - at < LANES ? width - at : LANES;
        for (int64_t first = 0; first < rows; first += TILE) {
            const int count = (int)(rows - first < TILE ? rows - first : TILE);
            any_block(w + b * bytes, w_scales + b * marks, w_mins ? w_mins + b * marks : 0, (int)bits, group, &acts, first,
                      count, out);
            if (silu) {
                const int64_t u = b + blocks;
                any_block(w + u * bytes, w_scales + u * marks, w_mins ? w_mins + u * marks : 0, (int)bits, group,
                          &acts, first, count, up);
                EACH
                    for (int j = 0; j < LANES; j++)
                        out[m][j] = out[m][j] / (1.0f + exp_of(-out[m][j])) * up[m][j];
            }
            EACH {
                float *to = y + (first + m) * width + at;
                const float *add = residual ? residual + (first + m) * width + at : 0;
                if (wide == LANES && add)
                    for (int j = 0; j < LANES; j++) to[j] = out[m][j] + add[j];
                else if (wide == LANES)
                    memcpy(to, out[m], sizeof out[m]);
                else
                    for (int j = 0; j < wide; j++) to[j] = out[m][j] + (add ? add[j] : 0.0f);
            }
        }
    }
}
