// Both sources as they are, executed by a CPU.
#include "cuda_on_cpu.h"
#include "haar.cu"
#include "resize.cu"

extern "C" uint16_t cpu_half(float value) { return half_bits(value); }

ON_CPU(resize_bgr_float, svrt::Resize<svrt::Bgr>)
ON_CPU(resize_bgr_half, svrt::Resize<svrt::Bgr>)
ON_CPU(resize_nv12_float, svrt::Resize<svrt::Nv12>)
ON_CPU(resize_nv12_half, svrt::Resize<svrt::Nv12>)
ON_CPU(motion_bgr_float, svrt::Motion<svrt::Bgr>)
ON_CPU(motion_bgr_half, svrt::Motion<svrt::Bgr>)
ON_CPU(motion_nv12_float, svrt::Motion<svrt::Nv12>)
ON_CPU(motion_nv12_half, svrt::Motion<svrt::Nv12>)
