// What the kernels share: types, products that processors with AVX-512 VNNI have, and threads.
#pragma once

#include <immintrin.h>
#include <stdint.h>

enum {
    LANES = 16,   // 32-bit numbers in a register
    ROWS = 6,     // of a tile: 6 rows x 64 columns are 24 registers of sums
    COLUMNS = 64,
    GROUP = 128,  // channels of a row that share a step
    FOUR = 4,     // int8 products that one instruction adds up
};

// sums[16] += u8[16][4] * s8[16][4]. As an instruction of its own, as GCC 12 moves the sums of the intrinsic to and fro.
#define DOT(sums, u8, s8) __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(u8), "v"(s8))
#define UNROLL(times) _Pragma(STRING(GCC unroll times))
#define STRING(text) #text

// The one operand of a product has no sign: 128 is added to it, and 128 times the sum of the other taken away again.
enum { UNSIGNED = 128, INT8_MAX_STEPS = 127 };

static const float TINY = 1e-30f;  // a step is never 0

// Rows in int8: `values` [rows padded to ROWS][columns], and for each GROUP of a row its step and -128 x its sum.
typedef struct {
    int8_t *values;
    float *steps;
    int32_t *offsets;
    int32_t rows, columns;
} Rows;

// Runs work(job, 0) ... work(job, units - 1), each once, on so many threads.
void parallel(int threads, int units, void (*work)(void *job, int unit), void *job);

// GROUP float32 in int8, their step, and -UNSIGNED times their sum.
void round_group(const float *x, int8_t *values, float *step, int32_t *offset);

static inline int padded(int rows) { return (rows + ROWS - 1) / ROWS * ROWS; }

// Four int8 of a row, for each lane.
static inline __m512i four_of(const void *row) {
    int32_t four;
    __builtin_memcpy(&four, row, FOUR);
    return _mm512_set1_epi32(four);
}

// 2 to the x, for x down to where it is nothing; off by 1e-4 of it at most.
static inline __m512 power_of_2(__m512 x) {
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 part = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.055171689f), part, _mm512_set1_ps(0.24261117f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(0.69326099f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(p, part, _mm512_set1_ps(0.99992807f)), whole);
}
