// The gate kernels of conv_gru: what follows a convolution, element by element, in one pass. Decides which thread takes
// which channels, and whether the convolution is done before or by the kernel that applies the gates.
#include "conv_gru/conv_gru_gates_cuda.h"

namespace vgkernels {
namespace conv_gru_gates {
namespace {

constexpr int kThreads = 256;

// One thread: kVector channels of a pixel.
template <class T, int kVector, class Gates>
__global__ void __launch_bounds__(kThreads) apply_gates(const T* products, Gates gates, Place last, int64_t items) {
  constexpr int kMaps = kGates<Gates>;
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= items) return;
  const int vectors = last.channels / kVector;
  Place at = last;
  at.pixel = items >> 32 ? item / vectors : uint32_t(item) / uint32_t(vectors);  // the short division, if it will do
  at.channel = int(item - at.pixel * vectors) * kVector;
  Acc<T> sums[kMaps][kVector] = {};
  if (products)
#pragma unroll
    for (int map = 0; map < kMaps; map++) load(products, at.of(kMaps, map), sums[map], T{});
  apply<T>(gates, at, sums);
}

template <class T, int kVector, class Gates>
const char* launch(const ConvGruProduct& product, const Gates& gates, void* stream) {
  const ConvGruShape& s = product.shape;
  const int64_t items = s.batch * s.pixels() * s.channels / kVector, blocks = divide_up(items, kThreads);
  if (blocks >> 31) return "too many elements in a step";
  const Place place{0, 0, int(s.channels), int(kept_channels(s.channels)), s.pixels()};
  VG_LAUNCH((apply_gates<T, kVector, Gates>), dim3(unsigned(blocks)), dim3(kThreads), 0, stream,
            static_cast<const T*>(product.operand), gates, place, items);
  return launch_error();
}

template <class Gates>
const char* run(const ConvGruProduct& product, const Gates& gates, DType dtype, void* stream) {
  const ConvGruShape& s = product.shape;
  if (s.batch * s.pixels() * s.channels == 0) return nullptr;
  if (3 * s.channels >> 31) return "too many channels";
  if (product.weight) return multiply_and_apply(product, gates, dtype, stream);
  return with_type(dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int kVector = 16 / sizeof(T);
    if (s.channels % kVector == 0 && aligned(gates) && all_aligned({product.operand}))
      return launch<T, kVector>(product, gates, stream);
    return launch<T, 1>(product, gates, stream);
  });
}

}  // namespace
}  // namespace conv_gru_gates

const char* conv_gru_cuda(const ConvGruProduct& product, const ConvGruResetUpdate& gates, DType dtype, void* stream) {
  return conv_gru_gates::run(product, gates, dtype, stream);
}
const char* conv_gru_cuda(const ConvGruProduct& product, const ConvGruCandidate& gates, DType dtype, void* stream) {
  return conv_gru_gates::run(product, gates, dtype, stream);
}
const char* conv_gru_cuda(const ConvGruProduct& product, const ConvGruCandidateBackward& gates, DType dtype,
                          void* stream) {
  return conv_gru_gates::run(product, gates, dtype, stream);
}
const char* conv_gru_cuda(const ConvGruProduct& product, const ConvGruResetBackward& gates, DType dtype, void* stream) {
  return conv_gru_gates::run(product, gates, dtype, stream);
}

}  // namespace vgkernels
