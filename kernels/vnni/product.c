// Rows in int8 times weights in int8, and what follows in float32: a bias, and a sum or GELU.
#include "vnni.h"

enum { CHUNK = 86 * ROWS };  // rows of a unit of work: its columns' weights stay in a processor's cache

typedef enum { STORE, ADD, GELU } After;

// `values` [outputs / COLUMNS][inputs / FOUR][COLUMNS][FOUR], UNSIGNED added; a step and a bias for each output.
typedef struct {
    const uint8_t *values;
    const float *steps, *bias;
    int32_t outputs, inputs;
} Weights;

typedef struct {
    const Rows *rows;
    const Weights *weights;
    After after;
    float *out;
    Rows *next;
} Job;

// What a group of channels adds to a tile's sums [ROWS][GROUP], of which it has COLUMNS.
static void add_group(const int8_t *rows, int stride, const uint8_t *weights, const int32_t *offsets,
                      const float *steps, int groups, float *sums) {
    __m512i products[ROWS][4];
    UNROLL(6) for (int r = 0; r < ROWS; r++)
        UNROLL(4) for (int c = 0; c < 4; c++) products[r][c] = _mm512_set1_epi32(offsets[r * groups]);
    for (int i = 0; i < GROUP; i += FOUR, weights += COLUMNS * FOUR) {
        __m512i columns[4];
        UNROLL(4) for (int c = 0; c < 4; c++) columns[c] = _mm512_loadu_si512(weights + c * LANES * FOUR);
        UNROLL(6) for (int r = 0; r < ROWS; r++) {
            __m512i row = four_of(rows + (size_t)r * stride + i);
            UNROLL(4) for (int c = 0; c < 4; c++) DOT(products[r][c], columns[c], row);
        }
    }
    UNROLL(6) for (int r = 0; r < ROWS; r++) {
        __m512 step = _mm512_set1_ps(steps[r * groups]);
        UNROLL(4) for (int c = 0; c < 4; c++) {
            float *at = sums + r * GROUP + c * LANES;
            _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[r][c]), step, _mm512_loadu_ps(at)));
        }
    }
}

// Sums of ROWS rows and GROUP columns.
static void tile(const Job *job, int row, int column, float sums[ROWS * GROUP]) {
    const Rows *rows = job->rows;
    int inputs = rows->columns, groups = inputs / GROUP;
    __builtin_memset(sums, 0, ROWS * GROUP * sizeof *sums);
    for (int half = 0; half < GROUP; half += COLUMNS)
        for (int group = 0; group < groups; group++) {
            int at = row * groups + group;
            const uint8_t *weights = job->weights->values + (size_t)(column + half) * inputs + group * GROUP * COLUMNS;
            const int8_t *values = rows->values + (size_t)row * inputs + group * GROUP;
            add_group(values, inputs, weights, rows->offsets + at, rows->steps + at, groups, sums + half);
        }
}

// x / 2 (1 + erf(x / sqrt 2)); erf by Abramowitz and Stegun, 7.1.26.
static __m512 gelu(__m512 x) {
    __m512 one = _mm512_set1_ps(1), z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.061405429f), t, _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
    p = _mm512_mul_ps(_mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f)), t);
    __m512 rest = _mm512_mul_ps(p, power_of_2(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-1.44269504f))));
    // 1 + erf is `rest` below zero, and 2 - `rest` above it.
    __m512 both = _mm512_mask_sub_ps(rest, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), _mm512_set1_ps(2), rest);
    return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.5f)), both);
}

static void finish_row(const Job *job, int row, int column, float *sums) {
    float *out = job->after == GELU ? sums : job->out + (size_t)row * job->weights->outputs + column;
    for (int i = 0; i < GROUP; i += LANES) {
        __m512 bias = _mm512_loadu_ps(job->weights->bias + column + i);
        __m512 y = _mm512_fmadd_ps(_mm512_loadu_ps(sums + i), _mm512_loadu_ps(job->weights->steps + column + i), bias);
        if (job->after == ADD) y = _mm512_add_ps(y, _mm512_loadu_ps(out + i));
        if (job->after == GELU) y = gelu(y);
        _mm512_storeu_ps(out + i, y);
    }
    if (job->after == GELU) {
        int at = (row * job->weights->outputs + column) / GROUP;
        round_group(sums, job->next->values + (size_t)at * GROUP, job->next->steps + at, job->next->offsets + at);
    }
}

static void chunk(void *given, int unit) {
    const Job *job = given;
    int rows = job->rows->rows, chunks = (rows + CHUNK - 1) / CHUNK;
    int column = unit / chunks * GROUP, from = unit % chunks * CHUNK;
    float sums[ROWS * GROUP] __attribute__((aligned(64)));
    for (int row = from; row < rows && row < from + CHUNK; row += ROWS) {
        tile(job, row, column, sums);
        for (int r = 0; r < ROWS && row + r < rows; r++) finish_row(job, row + r, column, sums + r * GROUP);
    }
}

// rows times weights, plus bias: to `out` float32 [rows][outputs], added to what is there, or after GELU to `next`.
void svrt_product(const Rows *rows, const Weights *weights, int after, float *out, Rows *next, int threads) {
    Job job = {.rows = rows, .weights = weights, .after = (After)after, .out = out, .next = next};
    parallel(threads, weights->outputs / GROUP * ((rows->rows + CHUNK - 1) / CHUNK), chunk, &job);
}
