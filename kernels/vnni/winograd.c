// VGG-16's convolutions by Winograd's way, F(4 x 4, 3 x 3) (Lavin and Gray, arXiv 1509.09308, section 4), with products
// of 16-bit integers.
//
// A map is cut into tiles of 6 x 6 pixels, four apart. Of each 36 sums are made, multiplied with 36 weights of every
// filter, added up over the channels, and 4 x 4 outputs are sums of those: a quarter of the products. What is between never
// leaves a processor's cache: a strip of tiles goes from map to map.
//
// Integers of 16 bits cost what bfloat16 costs, and have what this way needs: it loses two digits in binary and more
// where direct products lose none. Sums are in steps of the largest of their kind in a tile, over all channels; weights in
// steps of the largest of their kind in a filter that leave no room for an overflow.
#include <string.h>

#include "vnni.h"

enum {
    SIDE = 6,            // of a tile, in pixels; sums are as many
    STEP = 4,            // from tile to tile; outputs are as many
    TILE = SIDE * SIDE,  // sums of a tile
    PAIR = 2,            // products that one instruction adds up
    LARGEST_SUM = 8191,  // of a tile's, in steps
    MOST_TILES = 24,     // of a strip: more do not fit a processor's second cache
};

static const float LARGEST_PIXEL = 65504;  // that float16 holds

// sums[16] += s16[16][2] * s16[16][2].
#define DOT_PAIRS(sums, a, b) __asm__("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b))

// float16, none below 0, [images][rows + border][columns + border][channels]: zeros around, one above and left of the
// map, and as many below and right of it as tiles reach.
typedef struct {
    uint16_t *values;
    int32_t height, width, channels;
} Map;

// `values` [filters / COLUMNS][TILE][channels / PAIR][COLUMNS][PAIR], their steps [filters / COLUMNS][TILE][COLUMNS]: for
// each filter and sum as many as keep the whole of its weights times LARGEST_SUM within 32 bits.
typedef struct {
    const int16_t *values;
    const float *steps, *bias;
    int32_t filters, channels;
} Filters;

typedef struct {
    const Map *from;
    const Filters *filters;
    Map *to;
    int images, pooled, strip;
} Job;

static int tiles_along(int side) { return (side + STEP - 1) / STEP; }

static int pixels_along(int side) { return STEP * tiles_along(side) + 2; }

static size_t size_of(const Map *map) {
    return (size_t)pixels_along(map->height) * pixels_along(map->width) * map->channels;
}

// The pixel of that row and column of the map itself, or of what is around it.
static uint16_t *pixel(const Map *map, int image, int row, int column) {
    size_t at = (size_t)(row + 1) * pixels_along(map->width) + column + 1;
    return map->values + image * size_of(map) + at * map->channels;
}

// A tile: its image, and where its outputs begin.
typedef struct {
    int image, row, column;
} Place;

static Place place_of(const Map *map, int tile) {
    int rows = tiles_along(map->height), columns = tiles_along(map->width);
    return (Place){tile / (rows * columns), STEP * (tile / columns % rows), STEP * (tile % columns)};
}

static inline __m512 widened(const uint16_t *values) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)values));
}

static inline void store_pixel(uint16_t *to, __m512 x) {
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_setzero_ps()), _mm512_set1_ps(LARGEST_PIXEL));
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline __m512 times(float factor, __m512 x, __m512 y) { return _mm512_fmadd_ps(_mm512_set1_ps(factor), x, y); }

// Sums of six pixels (transposed B there).
static inline void six_sums(const __m512 p[SIDE], __m512 sums[SIDE]) {
    __m512 far = _mm512_sub_ps(p[4], p[2]), near = _mm512_sub_ps(p[3], p[1]);
    sums[0] = times(4, p[0], times(-5, p[2], p[4]));
    sums[1] = times(-4, _mm512_add_ps(p[1], p[2]), _mm512_add_ps(p[3], p[4]));
    sums[2] = times(4, _mm512_sub_ps(p[1], p[2]), _mm512_sub_ps(p[4], p[3]));
    sums[3] = times(2, near, far);
    sums[4] = times(-2, near, far);
    sums[5] = times(4, p[1], times(-5, p[3], p[5]));
}

// The sums of a tile's pixels, float32 [TILE][channels], and the largest of each, lane by lane.
static void sum_pixels(const uint16_t *pixels, size_t row, int channels, float *sums, __m512 *most) {
    for (int i = 0; i < TILE; i++) most[i] = _mm512_set1_ps(TINY);
    for (int c = 0; c < channels; c += LANES) {
        __m512 rows[SIDE][SIDE];
        UNROLL(6) for (int r = 0; r < SIDE; r++) {
            __m512 p[SIDE];
            UNROLL(6) for (int k = 0; k < SIDE; k++) p[k] = widened(pixels + r * row + k * channels + c);
            six_sums(p, rows[r]);
        }
        UNROLL(6) for (int k = 0; k < SIDE; k++) {
            __m512 column[SIDE], t[SIDE];
            UNROLL(6) for (int r = 0; r < SIDE; r++) column[r] = rows[r][k];
            six_sums(column, t);
            UNROLL(6) for (int r = 0; r < SIDE; r++) {
                int i = r * SIDE + k;
                _mm512_storeu_ps(sums + i * channels + c, t[r]);
                most[i] = _mm512_max_ps(most[i], _mm512_abs_ps(t[r]));
            }
        }
    }
}

// A tile's sums as integers, to rounded + i x `stride`, and the step of each.
static void round_sums(const uint16_t *pixels, size_t row, int channels, int16_t *rounded, size_t stride, float *steps) {
    float sums[TILE * channels] __attribute__((aligned(64)));
    __m512 most[TILE];
    sum_pixels(pixels, row, channels, sums, most);
    for (int i = 0; i < TILE; i++) {
        steps[i] = _mm512_reduce_max_ps(most[i]) / LARGEST_SUM;
        __m512 inverse = _mm512_set1_ps(1 / steps[i]);
        for (int c = 0; c < channels; c += LANES) {
            __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(sums + i * channels + c), inverse));
            _mm256_storeu_si256((__m256i *)(rounded + i * stride + c), _mm512_cvtsepi32_epi16(whole));
        }
    }
}

// products [ROWS][COLUMNS] of ROWS tiles' sums and COLUMNS filters' weights, added up over the channels.
static __attribute__((noinline)) void multiply(const int16_t *sums, int channels, const int16_t *weights,
                                               int32_t *products) {
    __m512i added[ROWS][4];
    UNROLL(6) for (int r = 0; r < ROWS; r++)
        UNROLL(4) for (int c = 0; c < 4; c++) added[r][c] = _mm512_setzero_si512();
    for (int i = 0; i < channels; i += PAIR, weights += COLUMNS * PAIR) {
        __m512i columns[4];
        UNROLL(4) for (int c = 0; c < 4; c++) columns[c] = _mm512_loadu_si512(weights + c * LANES * PAIR);
        UNROLL(6) for (int r = 0; r < ROWS; r++) {
            __m512i pair = four_of(sums + (size_t)r * channels + i);
            UNROLL(4) for (int c = 0; c < 4; c++) DOT_PAIRS(added[r][c], columns[c], pair);
        }
    }
    UNROLL(6) for (int r = 0; r < ROWS; r++)
        UNROLL(4) for (int c = 0; c < 4; c++) _mm512_storeu_si512(products + r * COLUMNS + c * LANES, added[r][c]);
}

// Sums of six products (transposed A there).
static inline void four_outputs(const __m512 m[SIDE], __m512 out[STEP]) {
    __m512 sum = _mm512_add_ps(m[1], m[2]), less = _mm512_sub_ps(m[1], m[2]);
    __m512 sum2 = _mm512_add_ps(m[3], m[4]), less2 = _mm512_sub_ps(m[3], m[4]);
    out[0] = _mm512_add_ps(_mm512_add_ps(m[0], sum), sum2);
    out[1] = times(2, less2, less);
    out[2] = times(4, sum2, sum);
    out[3] = _mm512_add_ps(times(8, less2, less), m[5]);
}

// The outputs of a tile for LANES filters, of its products + i x `stride`, in steps of its sums and of the weights.
static inline void outputs(const int32_t *products, size_t stride, const float *of_sums, const float *of_weights,
                           __m512 out[STEP][STEP]) {
    __m512 columns[SIDE][STEP];
    UNROLL(6) for (int k = 0; k < SIDE; k++) {
        __m512 m[SIDE];
        UNROLL(6) for (int r = 0; r < SIDE; r++) {
            int i = r * SIDE + k;
            __m512 step = _mm512_mul_ps(_mm512_set1_ps(of_sums[i]), _mm512_loadu_ps(of_weights + i * COLUMNS));
            m[r] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(products + i * stride)), step);
        }
        four_outputs(m, columns[k]);
    }
    UNROLL(4) for (int r = 0; r < STEP; r++) {
        __m512 m[SIDE];
        UNROLL(6) for (int k = 0; k < SIDE; k++) m[k] = columns[k][r];
        four_outputs(m, out[r]);
    }
}

// What a tile comes to for COLUMNS filters, where it lies in the map; `pooled`, the largest of every 2 x 2.
static void finish_tile(const Job *job, Place at, int filter, const int32_t *products, size_t stride,
                        const float *steps) {
    Map *to = job->to;
    int each = job->pooled ? 2 : 1;
    for (int c = 0; c < COLUMNS; c += LANES) {
        __m512 out[STEP][STEP], bias = _mm512_loadu_ps(job->filters->bias + filter + c);
        outputs(products + c, stride, steps, job->filters->steps + (size_t)filter * TILE + c, out);
        for (int r = 0; r < STEP; r += each)
            for (int k = 0; k < STEP; k += each) {
                int row = (at.row + r) / each, column = (at.column + k) / each;
                if (row >= to->height || column >= to->width) continue;
                __m512 x = out[r][k];
                if (job->pooled) {
                    x = _mm512_max_ps(x, out[r][k + 1]);
                    x = _mm512_max_ps(x, _mm512_max_ps(out[r + 1][k], out[r + 1][k + 1]));
                }
                store_pixel(pixel(to, at.image, row, column) + filter + c, _mm512_add_ps(x, bias));
            }
    }
}

static void strip(void *given, int unit) {
    const Job *job = given;
    const Map *from = job->from;
    int channels = from->channels, first = unit * job->strip;
    int all = job->images * tiles_along(from->height) * tiles_along(from->width);
    int count = all - first < job->strip ? all - first : job->strip, rows = padded(count);
    size_t sums_stride = (size_t)rows * channels, products_stride = (size_t)rows * COLUMNS;
    int16_t sums[TILE * sums_stride] __attribute__((aligned(64)));
    int32_t products[TILE * products_stride] __attribute__((aligned(64)));
    float steps[rows][TILE];
    for (int tile = 0; tile < count; tile++) {
        Place at = place_of(from, first + tile);
        size_t row = (size_t)pixels_along(from->width) * channels;
        const uint16_t *corner = pixel(from, at.image, at.row - 1, at.column - 1);
        round_sums(corner, row, channels, sums + (size_t)tile * channels, sums_stride, steps[tile]);
    }
    for (int i = 0; i < TILE; i++)
        memset(sums + i * sums_stride + (size_t)count * channels, 0, (size_t)(rows - count) * channels * sizeof *sums);
    for (int filter = 0; filter < job->filters->filters; filter += COLUMNS) {
        const int16_t *weights = job->filters->values + (size_t)filter * TILE * channels;
        for (int i = 0; i < TILE; i++, weights += (size_t)channels * COLUMNS)
            for (int row = 0; row < rows; row += ROWS)
                multiply(sums + i * sums_stride + (size_t)row * channels, channels, weights,
                         products + i * products_stride + row * COLUMNS);
        for (int tile = 0; tile < count; tile++) {
            Place at = place_of(from, first + tile);
            finish_tile(job, at, filter, products + tile * COLUMNS, products_stride, steps[tile]);
        }
    }
}

// A convolution of 3 x 3 with a margin of one, its ReLU, and, where `pooled`, the largest of every 2 x 2.
void svrt_winograd(const Map *from, const Filters *filters, Map *to, int images, int pooled, int threads) {
    int all = images * tiles_along(from->height) * tiles_along(from->width);
    Job job = {.from = from, .filters = filters, .to = to, .images = images, .pooled = pooled};
    int rounds = (all + MOST_TILES * threads - 1) / (MOST_TILES * threads);  // in which all threads have as much to do
    job.strip = padded((all + rounds * threads - 1) / (rounds * threads));
    parallel(threads, (all + job.strip - 1) / job.strip, strip, &job);
}

// The first convolution, of a few channels, in float32: pixels [images][channels][height][width], weights
// [channels x 9][filters].
typedef struct {
    const float *pixels, *weights, *bias;
    int channels;
    Map *to;
} First;

enum { MARGIN = 8, LINES = 3 };  // of pixels beyond a line that the last tile reads, and lines of a channel

// A row of the map, of the LINES that it is made of in each channel, `line` apart.
static void first_row(const First *job, const float *lines, size_t line, int row, int image) {
    const Map *to = job->to;
    int filters = to->channels, taps = job->channels * 9;
    for (int filter = 0; filter < filters; filter += COLUMNS)
        for (int x = 0; x < to->width; x += ROWS) {
            __m512 sums[ROWS][4];
            UNROLL(4) for (int c = 0; c < 4; c++)
                UNROLL(6) for (int r = 0; r < ROWS; r++) sums[r][c] = _mm512_loadu_ps(job->bias + filter + c * LANES);
            for (int tap = 0; tap < taps; tap++) {
                const float *at = lines + tap / 3 * line + tap % 3 + x;
                const float *weights = job->weights + tap * filters + filter;
                __m512 columns[4];
                UNROLL(4) for (int c = 0; c < 4; c++) columns[c] = _mm512_loadu_ps(weights + c * LANES);
                UNROLL(6) for (int r = 0; r < ROWS; r++) {
                    __m512 value = _mm512_set1_ps(at[r]);
                    UNROLL(4) for (int c = 0; c < 4; c++) sums[r][c] = _mm512_fmadd_ps(value, columns[c], sums[r][c]);
                }
            }
            UNROLL(6) for (int r = 0; r < ROWS; r++) {
                if (x + r >= to->width) break;
                uint16_t *at = pixel(to, image, row, x + r) + filter;
                UNROLL(4) for (int c = 0; c < 4; c++)
                    store_pixel(at + c * LANES, sums[r][c]);
            }
        }
}

static void first_unit(void *given, int unit) {
    const First *job = given;
    int height = job->to->height, width = job->to->width, image = unit / height, row = unit % height;
    size_t line = width + MARGIN;
    float lines[LINES * job->channels * line];
    memset(lines, 0, sizeof lines);
    for (int channel = 0; channel < job->channels; channel++)
        for (int k = 0; k < LINES; k++) {
            int at = row + k - 1;
            if (at < 0 || at >= height) continue;
            const float *pixels = job->pixels + (((size_t)image * job->channels + channel) * height + at) * width;
            memcpy(lines + (channel * LINES + k) * line + 1, pixels, width * sizeof *pixels);
        }
    first_row(job, lines, line, row, image);
}

void svrt_first_convolution(const float *pixels, const float *weights, const float *bias, int channels, int images,
                            Map *to, int threads) {
    First job = {.pixels = pixels, .weights = weights, .bias = bias, .channels = channels, .to = to};
    parallel(threads, images * to->height, first_unit, &job);
}
