// A fault for each tool of compute-sanitizer, in a kernel of our namespace, so that a tool or a filter that sees
// nothing is found out. Decides the faults; gpu_report_sanitizers.py decides what follows. `planted memcheck` runs one
// of them.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

namespace vgkernels {

__global__ void past_the_end(float* values, int count) { values[(count << 10) + threadIdx.x] = 1; }

__global__ void without_barrier(float* values) {
  __shared__ float shared[64];
  shared[threadIdx.x] = values[threadIdx.x];
  values[threadIdx.x] = shared[63 - threadIdx.x];
}

__global__ void of_nobody(const float* never_written, float* values) {
  values[threadIdx.x] = never_written[threadIdx.x];
}

__global__ void half_a_barrier(float* values) {
  if (threadIdx.x < 16) __syncthreads();
  values[threadIdx.x] += 1;
}

}  // namespace vgkernels

int main(int argc, char** argv) {
  const char* tool = argc > 1 ? argv[1] : "";
  float *values = nullptr, *never_written = nullptr;
  if (cudaMalloc(&values, 64 * sizeof(float)) != cudaSuccess ||
      cudaMalloc(&never_written, 64 * sizeof(float)) != cudaSuccess) {
    std::puts("no device");
    return 2;
  }
  cudaMemset(values, 0, 64 * sizeof(float));
  if (!std::strcmp(tool, "memcheck")) vgkernels::past_the_end<<<1, 64>>>(values, 64);
  if (!std::strcmp(tool, "racecheck")) vgkernels::without_barrier<<<1, 64>>>(values);
  if (!std::strcmp(tool, "initcheck")) vgkernels::of_nobody<<<1, 64>>>(never_written, values);
  if (!std::strcmp(tool, "synccheck")) vgkernels::half_a_barrier<<<1, 64>>>(values);
  cudaDeviceSynchronize();
  cudaFree(values);
  cudaFree(never_written);
  return 0;
}
