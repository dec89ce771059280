/* What several kernels compute. */
#ifndef QWEN3_MATHS_H
#define QWEN3_MATHS_H
#include <math.h>
#include <stdint.h>
#include <string.h>

/* exp(x) to about 2 ulp from -87 to 88, without branches, so that compilers turn loops of it into vectors */
static inline float exp_of(float x) {
    x = x < -87.0f ? -87.0f : x; /* NaN stays */
    x = (x > 88.0f ? 88.0f : x) * 1.44269504f;
    const float whole = rintf(x), part = x - whole;
    float p = 1.5403530e-4f;
    p = fmaf(p, part, 1.3333558e-3f);
    p = fmaf(p, part, 9.6181291e-3f);
    p = fmaf(p, part, 5.5504109e-2f);
    p = fmaf(p, part, 2.4022651e-1f);
    p = fmaf(p, part, 6.9314718e-1f);
    p = fmaf(p, part, 1.0f);
    const int32_t bits = ((int32_t)whole + 127) << 23;
    float two;
    memcpy(&two, &bits, 4);
    return p * two;
}
#endif
