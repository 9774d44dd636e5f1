// Enough of CUDA for a CPU to execute a .cu file: every thread of a grid, one after the other.
#pragma once
#include <cstdint>
#include <cstring>

#define __device__
#define __global__

struct Dim3 {
  unsigned x, y, z;
};
static Dim3 blockIdx, blockDim, threadIdx;

// IEEE half precision of a float, to nearest, ties to even; held against numpy by a test.
static inline uint16_t half_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
  const int exponent = static_cast<int>(magnitude >> 23) - 112;
  if (exponent < -10) return sign;
  const uint32_t fraction = (magnitude & 0x7fffffu) | 0x800000u;
  const int cut = exponent > 0 ? 13 : 14 - exponent;
  const uint32_t kept = exponent > 0 ? (static_cast<uint32_t>(exponent) << 10) + (magnitude >> 13 & 0x3ffu) : fraction >> cut;
  const uint32_t rest = fraction & ((1u << cut) - 1), tie = 1u << (cut - 1);
  return sign | (kept + (rest > tie || (rest == tie && (kept & 1u))));
}

#define ON_CPU(kernel, Job)                                                                                   \
  extern "C" {                                                                                                \
  unsigned size_##kernel = sizeof(Job);                                                                       \
  }                                                                                                           \
  extern "C" void cpu_##kernel(const void* job, unsigned gx, unsigned gy, unsigned bx, unsigned by) {         \
    blockDim = {bx, by, 1};                                                                                   \
    for (blockIdx.y = 0; blockIdx.y < gy; ++blockIdx.y)                                                       \
      for (blockIdx.x = 0; blockIdx.x < gx; ++blockIdx.x)                                                     \
        for (threadIdx.y = 0; threadIdx.y < by; ++threadIdx.y)                                                \
          for (threadIdx.x = 0; threadIdx.x < bx; ++threadIdx.x) kernel(*static_cast<const Job*>(job));       \
  }
