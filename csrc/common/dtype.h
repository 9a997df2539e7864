// Decides which storage types the kernels know, how they widen and round, and what they accumulate in.
// Torch-free: the torch side maps its scalar types to DType in tensor_bridge.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace vgkernels {

enum class DType : int { float64, float32, float16, bfloat16 };

struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

// Sums of 16-bit data are held in float, those of float in float, those of double in double.
template <class T>
struct AccumulateIn {
  using type = float;
};
template <>
struct AccumulateIn<double> {
  using type = double;
};
template <class T>
using Acc = typename AccumulateIn<T>::type;

template <class To, class From>
VG_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

VG_HOST_DEVICE double widen(double value) { return value; }
VG_HOST_DEVICE float widen(float value) { return value; }
VG_HOST_DEVICE float widen(bfloat16 value) { return bit_cast<float>(uint32_t(value.bits) << 16); }
VG_HOST_DEVICE float widen(float16 value) {
#if VG_DEVICE_CODE
  return __half2float(bit_cast<__half>(value.bits));
#else
  // Branch-free, so that loops over it vectorise: normal numbers by rescaling, subnormal ones by a magic addition.
  const uint32_t word = uint32_t(value.bits) << 16, twice = word + word;
  const float normal = bit_cast<float>((twice >> 4) + (0xE0u << 23)) * bit_cast<float>(0x07800000u);  // * 2^-112
  const float subnormal = bit_cast<float>((twice >> 17) | (126u << 23)) - 0.5f;
  const uint32_t magnitude = bit_cast<uint32_t>(twice < (1u << 27) ? subnormal : normal);
  return bit_cast<float>((word & 0x80000000u) | magnitude);
#endif
}

// narrow<T>(acc): round to nearest, ties to even; NaN stays NaN.
template <class T>
VG_HOST_DEVICE T narrow(Acc<T> value) {
  return value;
}
template <>
VG_HOST_DEVICE bfloat16 narrow<bfloat16>(float value) {
#if VG_DEVICE_CODE
  return bfloat16{bit_cast<uint16_t>(__float2bfloat16_rn(value))};
#else
  const uint32_t word = bit_cast<uint32_t>(value);
  const uint32_t rounded = (word + 0x7FFFu + ((word >> 16) & 1u)) >> 16;
  return bfloat16{uint16_t(value == value ? rounded : 0x7FC0u)};
#endif
}
template <>
VG_HOST_DEVICE float16 narrow<float16>(float value) {
#if VG_DEVICE_CODE
  return float16{bit_cast<uint16_t>(__float2half_rn(value))};
#else
  const uint32_t word = bit_cast<uint32_t>(value), twice = word + word, sign = word & 0x80000000u;
  const float magnitude = bit_cast<float>(word & 0x7FFFFFFFu);
  // Overflow to infinity first, then let the float adder round at the half's last place.
  float base = (magnitude * bit_cast<float>(0x77800000u)) * bit_cast<float>(0x08800000u);  // * 2^112 * 2^-110
  uint32_t bias = twice & 0xFF000000u;
  bias = bias < 0x71000000u ? 0x71000000u : bias;
  base = bit_cast<float>((bias >> 1) + 0x07800000u) + base;
  const uint32_t bits = bit_cast<uint32_t>(base);
  const uint32_t rounded = ((bits >> 13) & 0x7C00u) + (bits & 0x0FFFu);
  return float16{uint16_t((sign >> 16) | (twice > 0xFF000000u ? 0x7E00u : rounded))};
#endif
}

// Calls f(T{}) for the type that dtype names.
template <class F>
auto with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::float64:
      return f(double{});
    case DType::float16:
      return f(float16{});
    case DType::bfloat16:
      return f(bfloat16{});
    default:
      return f(float{});
  }
}

}  // namespace vgkernels
