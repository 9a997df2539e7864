// What the torch door calls of the CPU kernels of conv_gru. Torch-free.
#pragma once

#include "common/parallel.h"
#include "conv_gru/conv_gru.h"

namespace vgkernels {

// The weights as the engines want them, for calls of this shape and algorithm: so many bytes, filled by pack. Pointers
// of `params` other than the weights' are not read.
int64_t conv_gru_packed_bytes(const ConvGruForward& params, DType dtype);
bool conv_gru_pack_cpu(const ConvGruForward& params, DType dtype, const Parallel& parallel, void* packed);

// `packed` as pack filled it, or null. False: no memory.
bool conv_gru_forward_cpu(const ConvGruForward& params, DType dtype, const void* packed, const Parallel& parallel);
bool conv_gru_backward_cpu(const ConvGruBackward& params, DType dtype, const Parallel& parallel);

// Of the bits; equal ones give equal numbers.
uint64_t conv_gru_fingerprint(const void* data, int64_t bytes, uint64_t seed);

}  // namespace vgkernels
