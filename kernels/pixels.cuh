// Pixels of a decoded frame, and the rounding of OpenCV: what the kernels share.
//
// Compiled for the GPU without contraction of a * b + c (see nvcc.py), so that each rounding is that of the CPU twins.
#pragma once

#include <cstdint>

namespace svrt {

struct Colour {
  int blue, green, red;  // 0 to 255
};

// uint8 [H, W, 3], rows `pitch` bytes apart.
struct Bgr {
  const uint8_t* pixels;
  int32_t pitch;

  __device__ Colour at(int x, int y) const {
    const uint8_t* pixel = pixels + static_cast<int64_t>(y) * pitch + 3 * x;
    return {pixel[0], pixel[1], pixel[2]};
  }
};

__device__ inline int clamp_byte(int value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

// Luma uint8 [H, W], and chroma uint8 [H / 2, W / 2, 2] (U, V): what Jetson and NVDEC decode to.
// BT.601 in studio range in 20 bits of fraction, as cv2.COLOR_YUV2BGR_NV12 (color_yuv.simd.hpp) has it.
struct Nv12 {
  const uint8_t* luma;
  const uint8_t* chroma;
  int32_t luma_pitch, chroma_pitch;

  __device__ Colour at(int x, int y) const {
    const uint8_t* pair = chroma + static_cast<int64_t>(y >> 1) * chroma_pitch + (x & ~1);
    const int u = pair[0] - 128, v = pair[1] - 128, half = 1 << 19;
    const int footroom = luma[static_cast<int64_t>(y) * luma_pitch + x] - 16;
    const int light = (footroom < 0 ? 0 : footroom) * 1220542 + half;
    return {clamp_byte((light + 2116026 * u) >> 20),
            clamp_byte((light - 409993 * u - 852492 * v) >> 20),
            clamp_byte((light + 1673527 * v) >> 20)};
  }
};

// BT.601 luma, 0 to 255, in 15 bits of fraction as cv2.COLOR_BGR2GRAY (color_rgb.simd.hpp) has it.
__device__ inline int grey(Colour c) {
  return (3735 * c.blue + 19235 * c.green + 9798 * c.red + (1 << 14)) >> 15;
}

// To the nearest byte, ties to even, as OpenCV's saturate_cast<uchar>.
__device__ inline int round_byte(float value) {
#ifdef __CUDA_ARCH__
  return clamp_byte(__float2int_rn(value));
#else
  return clamp_byte(static_cast<int>(__builtin_rintf(value)));
#endif
}

__device__ inline void store(float* target, float value) { *target = value; }

// Half precision, to nearest, ties to even.
__device__ inline void store(uint16_t* target, float value) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(*target) : "f"(value));  // cuda_fp16.h wants headers that few have
#else
  *target = half_bits(value);  // of who compiles for a CPU
#endif
}

// What a network reads of a value 0 to 255: see `normalise` in preprocess.py. One entry per plane of the tensor.
struct Normal {
  float gain[3], offset[3];

  __device__ float of(float value, int plane) const { return value * gain[plane] - offset[plane]; }
};

}  // namespace svrt
