/* Products with weights of 2 to 8 bits on a CPU: see packed.py, which says what is computed and holds the plain twin.

   Layout. Sixteen rows of the weight stand side by side, so that a vector holds one number of each and no sum is ever
   taken across a vector. A span is 16 rows x 32 columns: eight "quads" of 16 rows x 4 columns. Its numbers are cut into
   planes of 8, 4, 2 or 1 bits, lowest first (6 bits: 4 and 2); 64 bytes of a plane of `b` bits hold 8/b quads, one in
   the lowest bits of all bytes, the next above it. Scales and minima: [row block][group][16] float16. Where there are
   integer scales beside them, for every 16 or 32 columns: [row block][columns / so many][16] int8, those of the minima
   behind those of the numbers.

   Activations come as int8 with a float32 scale for every 32. Sums of 32 products, times the integer scales, are exact
   (below 2^24, so in float32, too); the float32 additions that follow them have one order. So a row's result does not
   depend on what else is in the batch, on the number of threads, or on how the columns are cut. */
#include "kernels.h"
#include "maths.h"
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define LANES 16
#define SPAN 32 /* activations that share a scale */

typedef struct {
    const int8_t *values;  /* [rows][columns] */
    const float *scales;   /* [rows][columns / SPAN] */
    const int32_t *sums;   /* [rows][columns / SPAN], of the values, negative */
    const int32_t *firsts; /* likewise, of the first half of each span */
    int64_t columns;
} Acts;

/* Numbers of `bits`. mins: value = q * scale + min; else (q - zero) * scale. fine: columns to an integer scale, or 0.
   table: the 4 bits count in ggml's sixteen values of IQ4_NL (kvalues_iq4nl of ggml-common.h). */
typedef struct {
    const uint8_t *data;
    const uint16_t *scales, *mins; /* mins: 0 if there are none */
    const int8_t *marks;           /* the integer scales */
    int64_t bits, group, fine, table;
} Weight;

static const uint8_t VALUES[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241}; /* + 128 */

/* rows of x, through rms_norm where norm is given, to int8. */
static void quantize_row(const float *x, const float *norm, float eps, int64_t columns, int8_t *values, float *scales,
                         int32_t *sums, int32_t *firsts) {
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
        int32_t sum = 0, half = 0;
        for (int j = 0; j < SPAN; j++) {
            int32_t q = (int32_t)rintf(held[j] * inverse);
            values[i + j] = (int8_t)q;
            sum -= q;
        }
        for (int j = 0; j < SPAN / 2; j++) half -= values[i + j];
        scales[i / SPAN] = scale;
        sums[i / SPAN] = sum;
        firsts[i / SPAN] = half;
    }
}

/* sums: [2][rows][columns / SPAN], of spans and of their first halves */
void qwen3_quantize(const float *x, const float *norm, float eps, int64_t rows, int64_t columns, int8_t *values,
                    float *scales, int32_t *sums, int64_t threads) {
    const int64_t spans = columns / SPAN;
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(static) if (rows >= 8 && threads > 1)
    for (int64_t r = 0; r < rows; r++)
        quantize_row(x + r * columns, norm, eps, columns, values + r * columns, scales + r * spans, sums + r * spans,
                     sums + (rows + r) * spans);
}

/* One plane, of bits `at` and up, of a span's quads. */
static inline __attribute__((always_inline)) void fill_plane(uint8_t cells[8][64], const int width, const int at,
                                                             uint8_t *out) {
    const int each = 8 / width, mask = (1 << width) - 1;
    for (int line = 0; line < width; line++)
        for (int i = 0; i < 64; i++) {
            int byte = 0;
            for (int e = 0; e < each; e++) byte |= (cells[line * each + e][i] >> at & mask) << (width * e);
            out[64 * line + i] = (uint8_t)byte;
        }
}

/* numbers [rows][columns], a byte each, rows a multiple of 16 -> the layout above */
void qwen3_pack(const uint8_t *numbers, int64_t rows, int64_t columns, int64_t bits, uint8_t *out) {
    uint8_t cells[8][64];
    for (int64_t r = 0; r < rows; r += 16)
        for (int64_t c = 0; c < columns; c += SPAN, out += 64 * bits) {
            for (int i = 0; i < 16; i++)
                for (int q = 0; q < 8; q++) memcpy(cells[q] + 4 * i, numbers + (r + i) * columns + c + 4 * q, 4);
            if (bits == 8)
                memcpy(out, cells, sizeof cells);
            else if (bits < 4)
                fill_plane(cells, 2, 0, out);
            else
                fill_plane(cells, 4, 0, out);
            if (bits == 3) fill_plane(cells, 1, 2, out + 128);
            if (bits == 5) fill_plane(cells, 1, 4, out + 256);
            if (bits == 6) fill_plane(cells, 2, 4, out + 256);
        }
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

/* One block of 16 weight rows times `count` (1 to TILE) rows of activations: out[m][0..15] = the products. */
#define TILE 8
#define PAIRED 6 /* rows of activations that go through two blocks at once */
#define AHEAD 4096 /* bytes of the weight */
#if defined(__clang__) || !defined(__GNUC__)
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif
#define EACH UNROLL for (int m = 0; m < count; m++)
#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define WIDE
#define PATH "AVX-512 VNNI"
typedef __m512i Bytes;
#define LOAD(at) _mm512_loadu_si512(at)
#define BOTH(v, mask) _mm512_and_si512(v, _mm512_set1_epi8(mask))
#define OR(u, v) _mm512_or_si512(u, v)
#define UP(v, by) _mm512_slli_epi16(v, by)
#define DOWN(v, by) _mm512_srli_epi16(v, by)
#define LOOK_UP(v) _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)VALUES)), v)
#elif defined(__AVX2__)
#define PATH "AVX2"
typedef __m256i Bytes;
#define LOAD(at) _mm256_loadu_si256((const __m256i *)(at))
#define BOTH(v, mask) _mm256_and_si256(v, _mm256_set1_epi8(mask))
#define OR(u, v) _mm256_or_si256(u, v)
#define UP(v, by) _mm256_slli_epi16(v, by)
#define DOWN(v, by) _mm256_srli_epi16(v, by)
#define LOOK_UP(v) _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)VALUES)), v)
#else
#define PATH "plain C"
typedef uint8_t Bytes;
#define LOAD(at) (*(at))
#define BOTH(v, mask) ((uint8_t)((v) & (mask)))
#define OR(u, v) ((uint8_t)((u) | (v)))
#define UP(v, by) ((uint8_t)((v) << (by)))
#define DOWN(v, by) ((uint8_t)((v) >> (by)))
#define LOOK_UP(v) VALUES[v]
#endif

/* Quad q of a plane of `width` bits, moved up to bit `at` of each byte. */
INLINE Bytes plane(const uint8_t *w, const int width, const int q, const int at) {
    const int each = 8 / width, low = q % each * width, mask = ((1 << width) - 1) << at;
    const Bytes all = LOAD(w + 64 * (q / each));
    return BOTH(low < at ? UP(all, at - low) : low > at ? DOWN(all, low - at) : all, (char)mask);
}

/* Quad q of a span, from `w` on (of a vector shorter than 64 bytes, its own part): unsigned bytes. */
INLINE Bytes quad(const uint8_t *w, const int bits, const int q, const int table) {
    if (bits == 8) return LOAD(w + 64 * q);
    const int first = bits < 4 ? 2 : 4;
    Bytes v = plane(w, first, q, 0);
    if (bits > first) v = OR(v, bits - first == 2 ? plane(w + 64 * first, 2, q, first) : plane(w + 64 * first, 1, q, first));
    return table ? LOOK_UP(v) : v;
}

#if defined(WIDE)
#define FOUR(at) _mm512_broadcastd_epi32(_mm_loadu_si32(at)) /* from memory: a register would cost the busiest port */
#define HALVES(at) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(at)))
#define MARKS(at) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(at))))
INLINE void block(const Weight *of, const int bits, const int fine, const int table, const int mins, const Acts *a,
                  int64_t first, const int count, float (*out)[LANES]) {
    const int64_t columns = a->columns, spans = columns / SPAN, per = of->group / SPAN;
    const int shift = table ? 7 : bits - 1, two = fine == SPAN / 2; /* zero is 1 << shift */
    const uint8_t *w = of->data;
    const uint16_t *scales = of->scales, *least_scales = of->mins;
    const int8_t *marks = of->marks, *least_marks = marks + (fine ? columns / fine * LANES : 0);
    __m512 total[TILE];
    EACH total[m] = _mm512_setzero_ps();
    for (int64_t s = 0; s < spans; s += per, scales += LANES) {
        __m512 inner[TILE], least[TILE];
        EACH inner[m] = least[m] = _mm512_setzero_ps();
        for (int64_t t = s; t < s + per; t++, w += 64 * bits) {
            if (count > 1 && first == 0) /* several rows keep the processor too busy to look far ahead by itself */
                UNROLL for (int line = 0; line < bits; line++) __builtin_prefetch(w + AHEAD + 64 * line);
            const int8_t *x = a->values + first * columns + t * SPAN;
            const int32_t *sums = a->sums + first * spans + t, *firsts = a->firsts + first * spans + t;
            __m512i sum[TILE], more[TILE];
            EACH {
                sum[m] = mins ? _mm512_setzero_si512() : _mm512_slli_epi32(FOUR((two ? firsts : sums) + m * spans), shift);
                if (two)
                    more[m] = mins ? _mm512_setzero_si512()
                                   : _mm512_sub_epi32(_mm512_slli_epi32(FOUR(sums + m * spans), shift), sum[m]);
            }
            UNROLL for (int q = 0; q < SPAN / 4; q++) {
                const Bytes v = quad(w, bits, q, table);
                EACH {
                    if (two && q >= SPAN / 8)
                        more[m] = _mm512_dpbusd_epi32(more[m], v, FOUR(x + m * columns + 4 * q));
                    else
                        sum[m] = _mm512_dpbusd_epi32(sum[m], v, FOUR(x + m * columns + 4 * q));
                }
            }
            __m512 mark = _mm512_setzero_ps(), next = mark, low = mark, low_next = mark;
            if (fine) mark = MARKS(marks);
            if (two) next = MARKS(marks + LANES);
            if (fine && mins) low = MARKS(least_marks);
            if (two && mins) low_next = MARKS(least_marks + LANES);
            EACH {
                const float own = a->scales[(first + m) * spans + t];
                __m512 part = _mm512_cvtepi32_ps(sum[m]);
                if (fine) part = _mm512_mul_ps(part, mark);
                if (two) part = _mm512_fmadd_ps(_mm512_cvtepi32_ps(more[m]), next, part);
                inner[m] = _mm512_fmadd_ps(part, _mm512_set1_ps(own), inner[m]);
                if (mins && !fine)
                    least[m] = _mm512_add_ps(least[m], _mm512_set1_ps(-own * (float)sums[m * spans]));
                else if (mins) {
                    const int32_t begun = firsts[m * spans], rest = sums[m * spans] - begun;
                    __m512 sunk = _mm512_mul_ps(low, _mm512_set1_ps((float)(two ? begun : sums[m * spans])));
                    if (two) sunk = _mm512_fmadd_ps(low_next, _mm512_set1_ps((float)rest), sunk);
                    least[m] = _mm512_fmadd_ps(sunk, _mm512_set1_ps(-own), least[m]);
                }
            }
            if (fine) marks += LANES * SPAN / fine;
            if (fine && mins) least_marks += LANES * SPAN / fine;
        }
        const __m512 scale = HALVES(scales);
        EACH total[m] = _mm512_fmadd_ps(inner[m], scale, total[m]);
        if (mins) {
            const __m512 least_of = HALVES(least_scales);
            EACH total[m] = _mm512_fmadd_ps(least[m], least_of, total[m]);
            least_scales += LANES;
        }
    }
    EACH _mm512_storeu_ps(out[m], total[m]);
}

/* Two blocks at once, for forms without minima, table and integer scales: half as many activations are loaded, which is
   what many rows wait for. As many rows as there are registers for. The numbers are those of `block`. */
#define ROWS UNROLL for (int m = 0; m < PAIRED; m++)
INLINE void two_blocks(const Weight *one, const Weight *other, const int bits, const Acts *a, int64_t first,
                       float (*out)[LANES], float (*out_other)[LANES]) {
    const int64_t columns = a->columns, spans = columns / SPAN, per = one->group / SPAN;
    const uint8_t *w = one->data, *v = other->data;
    const uint16_t *scales = one->scales, *other_scales = other->scales;
    __m512 total[PAIRED], other_total[PAIRED];
    ROWS total[m] = other_total[m] = _mm512_setzero_ps();
    for (int64_t s = 0; s < spans; s += per, scales += LANES, other_scales += LANES) {
        __m512 inner[PAIRED], other_inner[PAIRED];
        ROWS inner[m] = other_inner[m] = _mm512_setzero_ps();
        for (int64_t t = s; t < s + per; t++, w += 64 * bits, v += 64 * bits) {
            if (first == 0)
                UNROLL for (int line = 0; line < bits; line++) {
                    __builtin_prefetch(w + AHEAD + 64 * line);
                    __builtin_prefetch(v + AHEAD + 64 * line);
                }
            const int8_t *x = a->values + first * columns + t * SPAN;
            const int32_t *sums = a->sums + first * spans + t;
            __m512i sum[PAIRED], other_sum[PAIRED];
            ROWS sum[m] = other_sum[m] = _mm512_slli_epi32(FOUR(sums + m * spans), bits - 1);
            UNROLL for (int q = 0; q < SPAN / 4; q++) {
                const Bytes here = quad(w, bits, q, 0), there = quad(v, bits, q, 0);
                ROWS {
                    const __m512i four = FOUR(x + m * columns + 4 * q);
                    sum[m] = _mm512_dpbusd_epi32(sum[m], here, four);
                    other_sum[m] = _mm512_dpbusd_epi32(other_sum[m], there, four);
                }
            }
            ROWS {
                const __m512 own = _mm512_set1_ps(a->scales[(first + m) * spans + t]);
                inner[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[m]), own, inner[m]);
                other_inner[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(other_sum[m]), own, other_inner[m]);
            }
        }
        const __m512 scale = HALVES(scales), other_scale = HALVES(other_scales);
        ROWS {
            total[m] = _mm512_fmadd_ps(inner[m], scale, total[m]);
            other_total[m] = _mm512_fmadd_ps(other_inner[m], other_scale, other_total[m]);
        }
    }
    ROWS {
        _mm512_storeu_ps(out[m], total[m]);
        _mm512_storeu_ps(out_other[m], other_total[m]);
    }
}
#else
/* sum[16] += the products of quad q of a span with four activations. */
INLINE void multiply(int32_t *sum, const uint8_t *w, const int bits, const int q, const int table, const int8_t *x) {
#if defined(__AVX2__)
    int32_t four;
    memcpy(&four, x, 4);
    const __m256i own = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
    UNROLL for (int half = 0; half < 2; half++) {
        __m256i v = quad(w + 32 * half, bits, q, table), pairs, *to = (__m256i *)(sum + 8 * half);
        if (bits == 8 || table) { /* unsigned 255 times 127 twice would not fit into 16 bits: |v| times x with v's sign does */
            v = _mm256_xor_si256(v, _mm256_set1_epi8((char)0x80));
            pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(own, v));
        } else {
            pairs = _mm256_maddubs_epi16(v, own);
        }
        _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_madd_epi16(pairs, ones)));
    }
#else
    uint8_t v[64];
    for (int i = 0; i < 64; i++) v[i] = quad(w + i, bits, q, table);
    for (int n = 0; n < LANES; n++)
        for (int j = 0; j < 4; j++) sum[n] += (int32_t)v[4 * n + j] * x[j];
#endif
}

INLINE void block(const Weight *of, const int bits, const int fine, const int table, const int mins, const Acts *a,
                  int64_t first, const int count, float (*out)[LANES]) {
    const int64_t columns = a->columns, spans = columns / SPAN, per = of->group / SPAN;
    const int two = fine == SPAN / 2, zero = mins ? 0 : 1 << (table ? 7 : bits - 1);
#if defined(__AVX2__)
    const int taken = bits == 8 || table ? 128 : 0; /* from the numbers before they are multiplied */
#else
    const int taken = 0;
#endif
    for (int m = 0; m < count; m++) {
        const uint8_t *w = of->data;
        const int8_t *marks = of->marks, *least_marks = marks + (fine ? columns / fine * LANES : 0);
        float total[LANES] = {0};
        for (int64_t s = 0, g = 0; s < spans; s += per, g++) {
            float inner[LANES] = {0}, least[LANES] = {0};
            for (int64_t t = s; t < s + per; t++, w += 64 * bits) {
                const int8_t *x = a->values + (first + m) * columns + t * SPAN;
                const int32_t all = a->sums[(first + m) * spans + t], begun = a->firsts[(first + m) * spans + t];
                const float own = a->scales[(first + m) * spans + t];
                int32_t sum[2][LANES];
                for (int n = 0; n < LANES; n++) sum[0][n] = (zero - taken) * (two ? begun : all);
                for (int n = 0; n < LANES; n++) sum[1][n] = (zero - taken) * (all - begun);
                UNROLL for (int q = 0; q < SPAN / 4; q++)
                    multiply(sum[two && q >= SPAN / 8], w, bits, q, table, x + 4 * q);
                for (int n = 0; n < LANES; n++) {
                    float part = (float)sum[0][n];
                    if (fine) part *= (float)marks[n];
                    if (two) part = fmaf((float)sum[1][n], (float)marks[LANES + n], part);
                    inner[n] = fmaf(part, own, inner[n]);
                    if (mins && !fine)
                        least[n] -= own * (float)all;
                    else if (mins) {
                        float sunk = (float)least_marks[n] * (float)(two ? begun : all);
                        if (two) sunk = fmaf((float)least_marks[LANES + n], (float)(all - begun), sunk);
                        least[n] = fmaf(sunk, -own, least[n]);
                    }
                }
                if (fine) marks += LANES * SPAN / fine;
                if (fine && mins) least_marks += LANES * SPAN / fine;
            }
            for (int n = 0; n < LANES; n++) {
                total[n] = fmaf(inner[n], half_to_float(of->scales[g * LANES + n]), total[n]);
                if (mins) total[n] = fmaf(least[n], half_to_float(of->mins[g * LANES + n]), total[n]);
            }
        }
        memcpy(out[m], total, sizeof total);
    }
}
#endif

const char *qwen3_path(void) { return PATH; }

/* All forms: bits, columns to an integer scale, table, minima. EVERY has code for each number of rows; SOME for powers
   of two, which spares the compiler half its time. */
static void any_block(const Weight *of, const Acts *a, int64_t first, int count, float (*out)[LANES]) {
#define IS(bits_, fine_, table_, mins_) \
    (of->bits == bits_ && of->fine == fine_ && of->table == table_ && !of->mins == !mins_)
#if defined(WIDE)
#define CASE(count_, ...) \
    case count_: block(of, __VA_ARGS__, a, first, count_, out); return;
#define EVERY(...) \
    if (IS(__VA_ARGS__)) switch (count) { \
        CASE(1, __VA_ARGS__) CASE(2, __VA_ARGS__) CASE(3, __VA_ARGS__) CASE(4, __VA_ARGS__) \
        CASE(5, __VA_ARGS__) CASE(6, __VA_ARGS__) CASE(7, __VA_ARGS__) CASE(8, __VA_ARGS__) \
    }
#define SOME(...) \
    if (IS(__VA_ARGS__)) switch (count) { \
        CASE(1, __VA_ARGS__) CASE(2, __VA_ARGS__) CASE(4, __VA_ARGS__) CASE(8, __VA_ARGS__) \
    default: \
        any_block(of, a, first, count & 4 ? 4 : 2, out); \
        any_block(of, a, first + (count & 4 ? 4 : 2), count - (count & 4 ? 4 : 2), out + (count & 4 ? 4 : 2)); \
    }
#else
#define EVERY(...) \
    if (IS(__VA_ARGS__)) block(of, __VA_ARGS__, a, first, count, out);
#define SOME EVERY
#endif
    EVERY(4, 0, 0, 0) EVERY(4, 0, 0, 1) EVERY(8, 0, 0, 0) EVERY(8, 0, 0, 1)
    SOME(5, 0, 0, 0) SOME(5, 0, 0, 1) SOME(4, 0, 1, 0) SOME(4, 32, 1, 0) SOME(2, 16, 0, 1) SOME(3, 16, 0, 0)
    SOME(4, 32, 0, 1) SOME(5, 32, 0, 1) SOME(6, 16, 0, 0)
}

/* `count` rows by two blocks. */
static void both_blocks(const Weight *one, const Weight *other, const Acts *a, int64_t first, int count,
                        float (*out)[LANES], float (*out_other)[LANES]) {
#if defined(WIDE)
    if (count == PAIRED && !one->fine && !one->table && !one->mins) {
        if (one->bits == 4) {
            two_blocks(one, other, 4, a, first, out, out_other);
            return;
        }
        if (one->bits == 8) {
            two_blocks(one, other, 8, a, first, out, out_other);
            return;
        }
    }
#endif
    any_block(one, a, first, count, out);
    any_block(other, a, first, count, out_other);
}

/* Columns at..at+15 of `count` rows, as far as there are. */
static void put(float (*out)[LANES], int count, int64_t first, int64_t at, const float *residual, float *y,
                int64_t width, int64_t stride) {
    const int64_t wide = width - at < LANES ? width - at : LANES;
    EACH {
        float *to = y + (first + m) * stride + at;
        const float *add = residual ? residual + (first + m) * stride + at : 0;
        if (wide == LANES && add)
            for (int j = 0; j < LANES; j++) to[j] = out[m][j] + add[j];
        else if (wide == LANES)
            memcpy(to, out[m], sizeof out[m]);
        else
            for (int j = 0; j < wide; j++) to[j] = out[m][j] + (add ? add[j] : 0.0f);
    }
}

/* y[rows][stride] = x @ w^T (+ residual of the same layout), of which `width` columns are written; silu: w holds gate
   rows, then up rows, y is silu(gate) * up. n: rows of the weight, a multiple of 16 (32 with silu) in memory. */
void qwen3_packed_linear(const int8_t *values, const float *scales, const int32_t *sums, int64_t rows, int64_t columns,
                         const uint8_t *w, const uint16_t *w_scales, const uint16_t *w_mins, const int8_t *w_marks,
                         int64_t n, int64_t bits, int64_t group, int64_t fine, int64_t table, const float *residual,
                         int64_t silu, float *y, int64_t width, int64_t stride, int64_t threads) {
    const Acts acts = {values, scales, sums, sums + rows * (columns / SPAN), columns};
    const int64_t bytes = columns * LANES * bits / 8, groups = columns / group * LANES;
    const int64_t marks = fine ? columns / fine * LANES * (w_mins ? 2 : 1) : 0;
    const int64_t all = n / LANES;
    /* fewer rows wait for memory */
    const int paired = rows >= PAIRED && bits != 5 && !fine && !table && !w_mins;
    const int64_t apart = silu ? all / 2 : 1, step = silu || !paired ? 1 : 2, end = silu ? all / 2 : all;
    (void)threads;
#define AT(b) {w + (b) * bytes, w_scales + (b) * groups, w_mins ? w_mins + (b) * groups : 0, \
               w_marks + (b) * marks, bits, group, fine, table}
#pragma omp parallel for num_threads((int)threads) schedule(static) if (threads > 1)
    for (int64_t b = 0; b < end; b += step) {
        float out[TILE][LANES], other[TILE][LANES];
        const int two = silu || (paired && b + 1 < end);
        const Weight here = AT(b), there = AT(b + apart); /* not looked at but for two */
        for (int64_t first = 0, count; first < rows; first += count) {
            const int64_t most = paired && two && rows - first >= PAIRED ? PAIRED : TILE;
            count = rows - first < most ? rows - first : most;
            if (two)
                both_blocks(&here, &there, &acts, first, (int)count, out, other);
            else
                any_block(&here, &acts, first, (int)count, out);
            if (silu)
                for (int m = 0; m < count; m++)
                    for (int j = 0; j < LANES; j++)
                        out[m][j] = out[m][j] / (1.0f + exp_of(-out[m][j])) * other[m][j];
            put(out, (int)count, first, b * LANES, residual, y, width, stride);
            if (two && !silu) put(other, (int)count, first, (b + 1) * LANES, residual, y, width, stride);
        }
    }
}
