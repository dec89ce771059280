/* Q4_0 and Q8_0 of GGUF files, read and laid out as packed.c multiplies them: see checkpoint/gguf/direct.py. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* MADV_HUGEPAGE */
#endif
#include "kernels.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LANES 16
#define SPAN 32
#define HUGE_PAGE ((uintptr_t)2 << 20)

/* Rows that follow each other in a file, a multiple of 16, of blocks of a float16 and 32 numbers of 4 or 8 bits; data
   and scales: where they go. All fields have 8 bytes. */
typedef struct {
    int64_t file, begin, rows, columns, bits;
    uint8_t *data;
    uint16_t *scales;
} Stretch;

/* Asks for large pages, where there are any: a first touch of memory costs as much as filling it otherwise. */
void qwen3_large_pages(uint8_t *at, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    const uintptr_t first = ((uintptr_t)at + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    const uintptr_t last = ((uintptr_t)at + (uintptr_t)bytes) & ~(HUGE_PAGE - 1);
    if (last > first) madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)at, (void)bytes;
#endif
}

/* 16 rows of blocks; four numbers of a row are a word. */
static void lay_out(const uint8_t *raw, int64_t columns, int64_t bits, uint8_t *data, uint16_t *scales) {
    const int64_t width = 2 + SPAN * bits / 8, row = columns / SPAN * width;
    for (int64_t s = 0; s < columns / SPAN; s++, raw += width, data += LANES * SPAN * bits / 8, scales += LANES)
        for (int64_t i = 0; i < LANES; i++) {
            const uint8_t *from = raw + i * row;
            uint32_t in[8], out[8];
            memcpy(scales + i, from, 2);
            memcpy(in, from + 2, (size_t)(width - 2));
            if (bits == 8) {
                for (int q = 0; q < 8; q++) out[q] = in[q] ^ 0x80808080u;
            } else { /* numbers 0 to 15 in the low halves of bytes, 16 to 31 in the high ones */
                for (int q = 0; q < 2; q++) {
                    const uint32_t even = in[2 * q], odd = in[2 * q + 1];
                    out[q] = (even & 0x0f0f0f0fu) | (odd & 0x0f0f0f0fu) << 4;
                    out[q + 2] = (even >> 4 & 0x0f0f0f0fu) | (odd & 0xf0f0f0f0u);
                }
            }
            for (int q = 0; q < bits; q++) memcpy(data + 64 * q + 4 * i, out + q, 4);
        }
}

static int read_all(int64_t file, uint8_t *to, int64_t count, int64_t at) {
    while (count > 0) {
        const ssize_t got = pread((int)file, to, (size_t)count, at);
        if (got <= 0) return 0;
        to += got, at += got, count -= got;
    }
    return 1;
}

/* read: how many stretches were; fewer than `count` if a file ends, cannot be read, or there is no memory. */
void qwen3_read_blocks(const Stretch *stretches, int64_t count, int64_t threads, int64_t *read) {
    int64_t done = 0;
    (void)threads;
#pragma omp parallel for num_threads((int)threads) schedule(dynamic) reduction(+ : done)
    for (int64_t n = 0; n < count; n++) {
        const Stretch of = stretches[n];
        const int64_t groups = of.columns / SPAN, bytes = LANES * groups * (2 + SPAN * of.bits / 8);
        uint8_t *room = malloc((size_t)bytes); /* of 16 rows: what stays in a cache */
        int64_t block = 0;
        for (; room && block < of.rows / LANES; block++) {
            if (!read_all(of.file, room, bytes, of.begin + block * bytes)) break;
            lay_out(room, of.columns, of.bits, of.data + block * LANES * of.columns * of.bits / 8,
                    of.scales + block * LANES * groups);
        }
        done += room && block == of.rows / LANES;
        free(room);
    }
    *read = done;
}
