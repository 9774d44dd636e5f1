// Attention with both of its products in int8, softmax between them in float32, scores never whole in memory.
//
// Rounded are: a query by the largest of its components; a key likewise, after the mean of all keys is taken from it,
// which softmax does not see (as in SageAttention, arXiv 2410.02367, section 4.2); values by the largest of each
// component; weights, from 0 to 255, by the largest of a query's in each BLOCK of keys, so that where most are small
// they are not rounded away beside a large one elsewhere.
#include <string.h>

#include "vnni.h"

enum {
    STRIP = 2 * ROWS,  // queries at a time: keys and values of a block are read from the second cache once for both
    BLOCK = 256,       // keys at a time
    CHUNK = 16 * STRIP,
    WIDEST = 128,  // head
};

static const float LOWEST = -1e30f, LOG2_E = 1.44269504f, LOG2_255 = 7.99435344f;

// Of each head: `queries` [padded][dim]; `keys` [tokens / COLUMNS][dim / FOUR][COLUMNS][FOUR]; `values`
// [tokens / FOUR][width][FOUR], where width is dim in whole registers.
typedef struct {
    const float *qkv, *cos, *sin;
    float *out;
    int heads, tokens, dim, width, padded;
    int8_t *queries, *values;
    uint8_t *keys;
    float *query_steps, *key_steps, *value_steps;
    int32_t *query_offsets;
} Job;

static size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Gives the job its places in `scratch`; returns the bytes that they take.
static size_t place(Job *job, char *scratch) {
    size_t queries = (size_t)job->heads * job->padded, keys = (size_t)job->heads * job->tokens, at = 0;
    job->queries = (int8_t *)scratch + at, at += aligned(queries * job->dim);
    job->keys = (uint8_t *)scratch + at, at += aligned(keys * job->dim);
    job->values = (int8_t *)scratch + at, at += aligned(keys * job->width);
    job->query_steps = (float *)(scratch + at), at += aligned(queries * sizeof(float));
    job->query_offsets = (int32_t *)(scratch + at), at += aligned(queries * sizeof(int32_t));
    job->key_steps = (float *)(scratch + at), at += aligned(keys * sizeof(float));
    job->value_steps = (float *)(scratch + at), at += aligned((size_t)job->heads * job->width * sizeof(float));
    return at;
}

static float largest(const float *x, int count) {
    float most = TINY;
    for (int i = 0; i < count; i++) {
        float size = __builtin_fabsf(x[i]);
        most = size > most ? size : most;
    }
    return most;
}

static void rotate(const float *restrict x, const float *restrict cos, const float *restrict sin, int dim,
                   float *restrict to) {
    int half = dim / 2;
    for (int i = 0; i < half; i++) to[i] = x[i] * cos[i] + x[half + i] * sin[i];
    for (int i = 0; i < half; i++) to[half + i] = x[half + i] * cos[half + i] + x[i] * sin[half + i];
}

static int round_all(const float *x, int count, float step, int8_t *restrict to) {
    int sum = 0;
    float inverse = 1 / step;
    for (int i = 0; i < count; i++) {
        int whole = (int)__builtin_rintf(x[i] * inverse);
        sum += whole;
        to[i] = (int8_t)whole;
    }
    return sum;
}

static const float *row_of(const Job *job, int part, int head, int token) {
    int hidden = job->heads * job->dim;
    return job->qkv + (size_t)token * 3 * hidden + part * hidden + head * job->dim;
}

static void round_queries(Job *job, int head) {
    int dim = job->dim;
    float x[WIDEST];
    for (int token = 0; token < job->padded; token++) {
        size_t at = (size_t)head * job->padded + token;
        if (token < job->tokens)
            rotate(row_of(job, 0, head, token), job->cos + (size_t)token * dim, job->sin + (size_t)token * dim, dim, x);
        else
            memset(x, 0, sizeof x);
        float step = largest(x, dim) / INT8_MAX_STEPS;
        job->query_offsets[at] = -UNSIGNED * round_all(x, dim, step, job->queries + at * dim);
        job->query_steps[at] = step * LOG2_E;  // powers are of 2
    }
}

static void round_keys(Job *job, int head) {
    int dim = job->dim;
    size_t hidden = (size_t)job->heads * dim;
    float mean[WIDEST] = {0}, *rotated = job->out + head * dim;  // its rows, until the head is computed
    for (int token = 0; token < job->tokens; token++) {
        float *row = rotated + token * hidden;
        rotate(row_of(job, 1, head, token), job->cos + (size_t)token * dim, job->sin + (size_t)token * dim, dim, row);
        for (int i = 0; i < dim; i++) mean[i] += row[i];
    }
    for (int i = 0; i < dim; i++) mean[i] /= job->tokens;
    for (int token = 0; token < job->tokens; token++) {
        size_t at = (size_t)head * job->tokens + token;
        float x[WIDEST];
        int8_t whole[WIDEST];
        for (int i = 0; i < dim; i++) x[i] = rotated[token * hidden + i] - mean[i];
        job->key_steps[at] = largest(x, dim) / INT8_MAX_STEPS;
        round_all(x, dim, job->key_steps[at], whole);
        for (int i = 0; i < dim; i++) whole[i] = (int8_t)(whole[i] ^ UNSIGNED);  // as unsigned: 128 more
        uint8_t *to = job->keys + (at - token % COLUMNS) * dim + token % COLUMNS * FOUR;
        for (int i = 0; i < dim; i += FOUR) memcpy(to + i * COLUMNS, whole + i, FOUR);
    }
}

static void round_values(Job *job, int head) {
    int dim = job->dim;
    float most[WIDEST], inverse[WIDEST];
    for (int i = 0; i < dim; i++) most[i] = TINY;
    for (int token = 0; token < job->tokens; token++) {
        const float *row = row_of(job, 2, head, token);
        for (int i = 0; i < dim; i++) most[i] = __builtin_fabsf(row[i]) > most[i] ? __builtin_fabsf(row[i]) : most[i];
    }
    for (int i = 0; i < dim; i++) {
        job->value_steps[head * job->width + i] = most[i] / INT8_MAX_STEPS;
        inverse[i] = INT8_MAX_STEPS / most[i];
    }
    int8_t *to = job->values + (size_t)head * job->tokens * job->width;
    for (int token = 0; token < job->tokens; token += FOUR, to += job->width * FOUR) {
        uint32_t four[WIDEST] = {0};
        for (int k = 0; k < FOUR; k++) {
            const float *row = row_of(job, 2, head, token + k);
            for (int i = 0; i < dim; i++) four[i] |= ((uint32_t)(int)__builtin_rintf(row[i] * inverse[i]) & 255) << 8 * k;
        }
        memcpy(to, four, job->width * FOUR);
    }
}

static void round_head(void *given, int head) {
    round_queries(given, head);
    round_keys(given, head);
    round_values(given, head);
}

// Scores of ROWS queries and COLUMNS keys, but for the queries' steps, and the largest of each query, lane by lane.
static __attribute__((noinline)) void score(const int8_t *queries, const int32_t *offsets, int dim,
                                            const uint8_t *keys, const float *steps, float *scores, __m512 *most) {
    __m512i products[ROWS][4];
    UNROLL(6) for (int r = 0; r < ROWS; r++)
        UNROLL(4) for (int c = 0; c < 4; c++) products[r][c] = _mm512_set1_epi32(offsets[r]);
    for (int i = 0; i < dim; i += FOUR, keys += COLUMNS * FOUR) {
        __m512i columns[4];
        UNROLL(4) for (int c = 0; c < 4; c++) columns[c] = _mm512_loadu_si512(keys + c * LANES * FOUR);
        UNROLL(6) for (int r = 0; r < ROWS; r++) {
            __m512i query = four_of(queries + (size_t)r * dim + i);
            UNROLL(4) for (int c = 0; c < 4; c++) DOT(products[r][c], columns[c], query);
        }
    }
    UNROLL(4) for (int c = 0; c < 4; c++) {
        __m512 step = _mm512_loadu_ps(steps + c * LANES);
        UNROLL(6) for (int r = 0; r < ROWS; r++) {
            __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(products[r][c]), step);
            most[r] = _mm512_max_ps(most[r], x);
            _mm512_storeu_ps(scores + r * BLOCK + c * LANES, x);
        }
    }
}

// 255 times 2 to the (step x score - largest), as bytes; returns their sum.
static int weigh(const float *scores, int count, float step, float largest, uint8_t *to) {
    __m512 scale = _mm512_set1_ps(step), shift = _mm512_set1_ps(LOG2_255 - largest);
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < count; i += LANES) {
        __m512 power = power_of_2(_mm512_fmadd_ps(_mm512_loadu_ps(scores + i), scale, shift));
        __m512i weight = _mm512_cvtps_epi32(power);
        sum = _mm512_add_epi32(sum, weight);
        _mm_storeu_si128((__m128i *)(to + i), _mm512_cvtusepi32_epi8(weight));
    }
    return _mm512_reduce_add_epi32(sum);
}

// mixed [ROWS][width] = keep x mixed + share x weights [ROWS][count] values [count][width], of which `registers` x LANES.
static inline __attribute__((always_inline)) void mix_columns(const uint8_t *weights, const int8_t *values, int count,
                                                              int width, const int registers, const float *keep,
                                                              const float *share, float *mixed) {
    __m512i sums[ROWS][4];
    UNROLL(6) for (int r = 0; r < ROWS; r++)
        UNROLL(4) for (int c = 0; c < registers; c++) sums[r][c] = _mm512_setzero_si512();
    for (int i = 0; i < count; i += FOUR, values += width * FOUR) {
        __m512i columns[4];
        UNROLL(4) for (int c = 0; c < registers; c++) columns[c] = _mm512_loadu_si512(values + c * LANES * FOUR);
        UNROLL(6) for (int r = 0; r < ROWS; r++) {
            __m512i weight = four_of(weights + r * BLOCK + i);
            UNROLL(4) for (int c = 0; c < registers; c++) DOT(sums[r][c], weight, columns[c]);
        }
    }
    UNROLL(6) for (int r = 0; r < ROWS; r++)
        UNROLL(4) for (int c = 0; c < registers; c++) {
            float *at = mixed + r * width + c * LANES;
            __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(at), _mm512_set1_ps(keep[r]));
            _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][c]), _mm512_set1_ps(share[r]), kept));
        }
}

#define MIX(registers)                                                                                               \
    static __attribute__((noinline)) void mix_##registers(const uint8_t *weights, const int8_t *values, int count,  \
                                                          int width, const float *keep, const float *share,         \
                                                          float *mixed) {                                           \
        mix_columns(weights, values, count, width, registers, keep, share, mixed);                                  \
    }
MIX(1) MIX(2) MIX(3) MIX(4)

static void mix(const uint8_t *weights, const int8_t *values, int count, int width, const float *keep,
                const float *share, float *mixed) {
    static void (*const by_registers[])(const uint8_t *, const int8_t *, int, int, const float *, const float *,
                                        float *) = {0, mix_1, mix_2, mix_3, mix_4};
    for (int column = 0; column < width; column += 4 * LANES) {
        int registers = width - column < 4 * LANES ? (width - column) / LANES : 4;
        by_registers[registers](weights, values + column * FOUR, count, width, keep, share, mixed + column);
    }
}

// What a strip of queries has come to: what is mixed so far, of weights by `above`, their largest, and their sum.
typedef struct {
    float mixed[STRIP * WIDEST], above[STRIP], sums[STRIP];
} Strip;

static void attend_block(const Job *job, int head, int first, int key, int count, Strip *strip) {
    size_t query = (size_t)head * job->padded + first, at = (size_t)head * job->tokens + key;
    float scores[STRIP * BLOCK] __attribute__((aligned(64))), keep[STRIP], share[STRIP];
    uint8_t weights[STRIP * BLOCK] __attribute__((aligned(64)));
    __m512 most[STRIP];
    for (int r = 0; r < STRIP; r++) most[r] = _mm512_set1_ps(LOWEST);
    for (int i = 0; i < count; i += COLUMNS)
        for (int r = 0; r < STRIP; r += ROWS)
            score(job->queries + (query + r) * job->dim, job->query_offsets + query + r, job->dim,
                  job->keys + (at + i) * job->dim, job->key_steps + at + i, scores + r * BLOCK + i, most + r);
    for (int r = 0; r < STRIP; r++) {
        float step = job->query_steps[query + r], here = _mm512_reduce_max_ps(most[r]) * step;
        float above = here > strip->above[r] ? here : strip->above[r];
        keep[r] = __builtin_exp2f(strip->above[r] - above), share[r] = __builtin_exp2f(here - above);
        strip->above[r] = above;
        int sum = weigh(scores + r * BLOCK, count, step, here, weights + r * BLOCK);
        strip->sums[r] = strip->sums[r] * keep[r] + sum * share[r];
    }
    for (int r = 0; r < STRIP; r += ROWS)
        mix(weights + r * BLOCK, job->values + at * job->width, count, job->width, keep + r, share + r,
            strip->mixed + r * job->width);
}

static void attend_strip(const Job *job, int head, int first) {
    Strip strip = {{0}, {0}, {0}};
    for (int r = 0; r < STRIP; r++) strip.above[r] = LOWEST;
    for (int key = 0; key < job->tokens; key += BLOCK)
        attend_block(job, head, first, key, job->tokens - key < BLOCK ? job->tokens - key : BLOCK, &strip);
    const float *steps = job->value_steps + head * job->width;
    for (int r = 0; r < STRIP && first + r < job->tokens; r++) {
        float *to = job->out + (size_t)(first + r) * job->heads * job->dim + head * job->dim;
        float scale = 1 / strip.sums[r];
        for (int i = 0; i < job->dim; i++) to[i] = strip.mixed[r * job->width + i] * scale * steps[i];
    }
}

static void attend_chunk(void *given, int unit) {
    const Job *job = given;
    int chunks = (job->padded + CHUNK - 1) / CHUNK, from = unit % chunks * CHUNK;
    for (int first = from; first < job->padded && first < from + CHUNK; first += STRIP)
        attend_strip(job, unit / chunks, first);
}

static Job job_of(int heads, int tokens, int dim) {
    int padded = (tokens + STRIP - 1) / STRIP * STRIP, width = (dim + LANES - 1) / LANES * LANES;
    return (Job){.heads = heads, .tokens = tokens, .dim = dim, .width = width, .padded = padded};
}

// Bytes of `scratch` that `svrt_attention` needs.
size_t svrt_attention_scratch(int heads, int tokens, int dim) {
    Job job = job_of(heads, tokens, dim);
    return place(&job, 0);
}

// Of qkv float32 [tokens][3][heads][dim], the first two rotated by cos and sin [tokens][dim], to out [tokens][heads]
// [dim]. Queries are scaled already. tokens: a multiple of COLUMNS; dim: of FOUR, at most WIDEST.
void svrt_attention(const float *qkv, const float *cos, const float *sin, int heads, int tokens, int dim, float *out,
                    char *scratch, int threads) {
    Job job = job_of(heads, tokens, dim);
    job.qkv = qkv, job.cos = cos, job.sin = sin, job.out = out;
    place(&job, scratch);
    parallel(threads, heads, round_head, &job);
    parallel(threads, heads * ((job.padded + CHUNK - 1) / CHUNK), attend_chunk, &job);
}
