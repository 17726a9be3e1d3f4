// SPDX-License-Identifier: Apache-2.0
// As much of CUDA as the kernels use, run on the CPU one thread after the other. For kernels without barriers only.
#pragma once

#define __device__
#define __global__
#define __launch_bounds__(threads)

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct Index {
  unsigned x = 0;
};
inline Index blockIdx, threadIdx;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) {
  return "";
}

template <typename Kernel, typename... Args>
void emulated_launch(Kernel kernel, unsigned grid, unsigned threads, unsigned, cudaStream_t, const Args&... args) {
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) {
      kernel(args...);
    }
  }
}
