// Picks the copy of the kernels that was compiled for this processor. The order of the work is in conv_gru_forward.h
// and conv_gru_backward.h; the engine on which the speed rests in conv_gru_winograd.h.
#include "conv_gru/conv_gru_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/scratch.h"
#include "common/workspace.h"

#define VG_ISA_FILE "conv_gru/conv_gru_isa.h"
#include "common/foreach_isa.h"

namespace vgkernels {

int64_t conv_gru_packed_bytes(const ConvGruForward& params, DType dtype) {
  return with_type(dtype, [&](auto type) {
    return VG_FOR_ISA(packed_elements<decltype(type)>(params)) * int64_t(sizeof(Acc<decltype(type)>));
  });
}

bool conv_gru_pack_cpu(const ConvGruForward& params, DType dtype, const Parallel& parallel, void* packed) {
  return with_type(dtype,
                   [&](auto type) { return VG_FOR_ISA(pack_weights<decltype(type)>(params, parallel, packed)); });
}

bool conv_gru_forward_cpu(const ConvGruForward& params, DType dtype, const void* packed, const Parallel& parallel) {
  return with_type(dtype,
                   [&](auto type) { return VG_FOR_ISA(conv_gru_forward<decltype(type)>(params, packed, parallel)); });
}

bool conv_gru_backward_cpu(const ConvGruBackward& params, DType dtype, const Parallel& parallel) {
  try {
    return with_type(dtype, [&](auto type) { return VG_FOR_ISA(conv_gru_backward<decltype(type)>(params, parallel)); });
  } catch (const std::bad_alloc&) {
    return false;
  }
}

uint64_t conv_gru_fingerprint(const void* data, int64_t bytes, uint64_t seed) {
  constexpr uint64_t kOdd = 0x9E3779B97F4A7C15u;
  constexpr int kLanes = 8;  // independent chains
  uint64_t lanes[kLanes], words[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = seed + i * kOdd;
  const auto mix = [&] {
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t mixed = (lanes[i] ^ words[i]) * kOdd;
      lanes[i] = mixed ^ (mixed >> 29);
    }
  };
  const char* at = static_cast<const char*>(data);
  for (; bytes >= int64_t(sizeof words); bytes -= sizeof words, at += sizeof words) {
    std::memcpy(words, at, sizeof words);
    mix();
  }
  std::memset(words, 0, sizeof words);
  std::memcpy(words, at, bytes);
  mix();
  uint64_t all = seed ^ uint64_t(bytes);
  for (const uint64_t lane : lanes) all = ((all ^ lane) * kOdd) ^ (all >> 31);
  return all;
}

}  // namespace vgkernels
