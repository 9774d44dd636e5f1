// Rows of float32 in int8, as they are or after LayerNorm.
#include "vnni.h"

enum { AT_ONCE = 64 };  // rows of a unit of work

typedef struct {
    const float *x, *weight, *bias;
    float epsilon;
    Rows *to;
} Job;

void round_group(const float *x, int8_t *values, float *step, int32_t *offset) {
    __m512 most = _mm512_set1_ps(TINY);
    for (int i = 0; i < GROUP; i += LANES) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
    *step = _mm512_reduce_max_ps(most) / INT8_MAX_STEPS;
    __m512 inverse = _mm512_set1_ps(1 / *step);
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < GROUP; i += LANES) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
        sum = _mm512_add_epi32(sum, whole);
        _mm_storeu_si128((__m128i *)(values + i), _mm512_cvtsepi32_epi8(whole));
    }
    *offset = -UNSIGNED * _mm512_reduce_add_epi32(sum);
}

static void round_row(const float *x, Rows *to, int row) {
    int groups = to->columns / GROUP;
    for (int group = 0; group < groups; group++) {
        int at = row * groups + group;
        round_group(x + group * GROUP, to->values + (size_t)at * GROUP, to->steps + at, to->offsets + at);
    }
}

static void norm_row(const Job *job, const float *x, int columns, float *to) {
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int i = 0; i < columns; i += LANES) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + i));
    __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / columns);
    for (int i = 0; i < columns; i += LANES) {
        __m512 off = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
        squares = _mm512_fmadd_ps(off, off, squares);
    }
    __m512 scale = _mm512_set1_ps(1 / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / columns + job->epsilon));
    for (int i = 0; i < columns; i += LANES) {
        __m512 off = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), mean), scale);
        __m512 bias = _mm512_loadu_ps(job->bias + i);
        _mm512_storeu_ps(to + i, _mm512_fmadd_ps(off, _mm512_loadu_ps(job->weight + i), bias));
    }
}

static void some_rows(void *given, int unit) {
    const Job *job = given;
    int columns = job->to->columns;
    float normed[columns];
    for (int row = unit * AT_ONCE; row < job->to->rows && row < (unit + 1) * AT_ONCE; row++) {
        const float *x = job->x + (size_t)row * columns;
        if (job->weight) norm_row(job, x, columns, normed);
        round_row(job->weight ? normed : x, job->to, row);
    }
}

// float32 x [rows][columns], after LayerNorm unless `weight` is null.
void svrt_rows(const float *x, const float *weight, const float *bias, float epsilon, Rows *to, int threads) {
    Job job = {.x = x, .weight = weight, .bias = bias, .epsilon = epsilon, .to = to};
    parallel(threads, (to->rows + AT_ONCE - 1) / AT_ONCE, some_rows, &job);
}
