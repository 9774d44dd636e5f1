// A decoded frame to the motion since the one before, in one pass: luma, Haar LL, difference, three equal planes.
//
// The twins are `luma`, `approximation` and `motion` in haar.py, repeated as VGG-16 reads them. A thread makes one value.
// Luma is whole numbers, so sums of them are exact in any order, up to level 8.
#include "pixels.cuh"

namespace svrt {

template <class Frame>
struct Motion {
  Frame frame;
  const float* previous;  // LL of the frame before, [rows, columns]; null for the first frame of a clip
  float* band;            // LL of this one, [rows, columns]
  void* tensor;           // [3, rows, columns]
  int32_t width, height, level, columns, rows;
  Normal normal;
};

// The pixel that lies `offset` into block `block` of 2^level, along one side of `size` pixels. Where a level has an odd
// size its last value stands twice: mirrored at every level, as PyWavelets does.
__device__ inline int inside(int block, int offset, int level, int size) {
  int index = block;
  for (int finer = level - 1; finer >= 0; --finer) {
    const int last = ((size + (1 << finer) - 1) >> finer) - 1;
    index = 2 * index + ((offset >> finer) & 1);
    index = index > last ? last : index;
  }
  return index;
}

template <class Frame>
__device__ float approximation(const Motion<Frame>& job, int column, int row) {
  const int side = 1 << job.level;
  int sum = 0;
  for (int dy = 0; dy < side; ++dy) {
    const int y = inside(row, dy, job.level, job.height);
    for (int dx = 0; dx < side; ++dx) sum += grey(job.frame.at(inside(column, dx, job.level, job.width), y));
  }
  return static_cast<float>(sum) * (1.0f / static_cast<float>(side));
}

template <class Frame, class Value>
__device__ void motion(const Motion<Frame>& job) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
  if (column >= job.columns || row >= job.rows) return;
  const int64_t place = static_cast<int64_t>(row) * job.columns + column;
  const float current = approximation(job, column, row);
  const float before = job.previous ? job.previous[place] : current;
  job.band[place] = current;
  const float change = current < before ? before - current : current - before;
  const float moved = change * (1.0f / static_cast<float>(1 << job.level));
  const int64_t plane = static_cast<int64_t>(job.columns) * job.rows;
  Value* value = static_cast<Value*>(job.tensor) + place;
  for (int copy = 0; copy < 3; ++copy) store(value + copy * plane, job.normal.of(moved, copy));
}

}  // namespace svrt

extern "C" {
__global__ void motion_bgr_float(const svrt::Motion<svrt::Bgr> job) { svrt::motion<svrt::Bgr, float>(job); }
__global__ void motion_bgr_half(const svrt::Motion<svrt::Bgr> job) { svrt::motion<svrt::Bgr, uint16_t>(job); }
__global__ void motion_nv12_float(const svrt::Motion<svrt::Nv12> job) { svrt::motion<svrt::Nv12, float>(job); }
__global__ void motion_nv12_half(const svrt::Motion<svrt::Nv12> job) { svrt::motion<svrt::Nv12, uint16_t>(job); }
}
