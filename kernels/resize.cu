// A decoded frame to the tensor that a network reads, in one pass: resize, crop, normalise, NCHW.
//
// The twins are `fit_square` and `normalise` in preprocess.py, which use OpenCV; its filters are those of resize.cpp.
// Between resizing and normalising the value is rounded to a byte, as it is there. A thread makes one pixel.
#include "pixels.cuh"

namespace svrt {

// The source pixels first to last that one row or column of the result is made of, and their weights; see views.py.
struct Span {
  int32_t first, last;
  float head, body, tail;  // weight of the first, of those between, of the last

  __device__ float weight(int index) const { return index == first ? head : index == last ? tail : body; }
};

enum Filter : int32_t {
  QUARTER = 0,  // mean of 2 x 2 pixels, halves upwards
  WHOLE = 1,    // mean of a whole number of pixels
  AREA = 2,     // weighted by the area that a pixel has in the result
  LINEAR = 3,   // between two by two pixels, weights in 2048ths
};

template <class Frame>
struct Resize {
  Frame frame;
  const Span* columns;  // [width]
  const Span* rows;     // [height]
  void* tensor;         // [3, height, width]
  int32_t width, height, filter, rgb;
  Normal normal;
};

struct Sums {
  float blue, green, red;
};

template <class Frame>
__device__ Colour mean(const Frame& frame, const Span& column, const Span& row, bool quarter) {
  int blue = 0, green = 0, red = 0;
  for (int y = row.first; y <= row.last; ++y) {
    for (int x = column.first; x <= column.last; ++x) {
      const Colour c = frame.at(x, y);
      blue += c.blue, green += c.green, red += c.red;
    }
  }
  if (quarter) return {(blue + 2) >> 2, (green + 2) >> 2, (red + 2) >> 2};
  const float share = 1.0f / static_cast<float>((row.last - row.first + 1) * (column.last - column.first + 1));
  return {round_byte(blue * share), round_byte(green * share), round_byte(red * share)};
}

template <class Frame>
__device__ Colour area(const Frame& frame, const Span& column, const Span& row) {
  Sums sum = {0.0f, 0.0f, 0.0f};
  for (int y = row.first; y <= row.last; ++y) {
    Sums line = {0.0f, 0.0f, 0.0f};
    for (int x = column.first; x <= column.last; ++x) {
      const Colour c = frame.at(x, y);
      const float weight = column.weight(x);
      line.blue += c.blue * weight, line.green += c.green * weight, line.red += c.red * weight;
    }
    const float weight = row.weight(y);
    sum.blue += line.blue * weight, sum.green += line.green * weight, sum.red += line.red * weight;
  }
  return {round_byte(sum.blue), round_byte(sum.green), round_byte(sum.red)};
}

// Where OpenCV cuts bits off: 22 bits of fraction, of which 4, then 16, then (rounded) 2 go.
__device__ inline int between(int top_left, int top_right, int left, int right, const Span& column, const Span& row) {
  const int near = static_cast<int>(column.head), far = static_cast<int>(column.tail);
  const int top = top_left * near + top_right * far, bottom = left * near + right * far;
  const int above = (static_cast<int>(row.head) * (top >> 4)) >> 16;
  const int below = (static_cast<int>(row.tail) * (bottom >> 4)) >> 16;
  return clamp_byte((above + below + 2) >> 2);
}

template <class Frame>
__device__ Colour linear(const Frame& frame, const Span& column, const Span& row) {
  const Colour a = frame.at(column.first, row.first), b = frame.at(column.last, row.first);
  const Colour c = frame.at(column.first, row.last), d = frame.at(column.last, row.last);
  return {between(a.blue, b.blue, c.blue, d.blue, column, row),
          between(a.green, b.green, c.green, d.green, column, row),
          between(a.red, b.red, c.red, d.red, column, row)};
}

template <class Frame, class Value>
__device__ void resize(const Resize<Frame>& job) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= job.width || y >= job.height) return;
  const Span column = job.columns[x], row = job.rows[y];
  const Colour c = job.filter == LINEAR ? linear(job.frame, column, row)
                   : job.filter == AREA ? area(job.frame, column, row)
                                        : mean(job.frame, column, row, job.filter == QUARTER);
  const int64_t plane = static_cast<int64_t>(job.width) * job.height;
  Value* pixel = static_cast<Value*>(job.tensor) + static_cast<int64_t>(y) * job.width + x;
  store(pixel, job.normal.of(static_cast<float>(job.rgb ? c.red : c.blue), 0));
  store(pixel + plane, job.normal.of(static_cast<float>(c.green), 1));
  store(pixel + 2 * plane, job.normal.of(static_cast<float>(job.rgb ? c.blue : c.red), 2));
}

}  // namespace svrt

extern "C" {
__global__ void resize_bgr_float(const svrt::Resize<svrt::Bgr> job) { svrt::resize<svrt::Bgr, float>(job); }
__global__ void resize_bgr_half(const svrt::Resize<svrt::Bgr> job) { svrt::resize<svrt::Bgr, uint16_t>(job); }
__global__ void resize_nv12_float(const svrt::Resize<svrt::Nv12> job) { svrt::resize<svrt::Nv12, float>(job); }
__global__ void resize_nv12_half(const svrt::Resize<svrt::Nv12> job) { svrt::resize<svrt::Nv12, uint16_t>(job); }
}
