// What the torch door calls of conv_gru's CUDA kernels: half a step of the recurrence, or of its backward, in one
// launch. The loop over time is in vgkernels/conv_gru_cuda.py. Channels are innermost in all arrays here. Torch-free
// and CUDA-free.
#pragma once

#include "conv_gru/conv_gru.h"

namespace vgkernels {

// The sums that a launch begins with, of some columns at each pixel: a convolution, done before or to be done here.
// All arrays below are packed and of the call's dtype T, or of A, the accumulation dtype; S pixels, Cp
// kept_channels(C).
struct ConvGruProduct {
  ConvGruShape shape;   // input_channels are the operand's; steps is not read
  const void* operand;  // (B, S, Cin); without a weight the sums themselves, (B, S, columns); null: zeros
  const void* weight;   // (packed columns, taps, Cin), as below; float16 and bfloat16 only
};

// A packed weight's columns are its outputs, so ordered that a thread of the tensor cores' sums holds 4 neighbouring
// channels of each map and moves them as one vector: those of map m, channel 16 i + 4 t + 2 j + b are column 16 (i maps
// + m) + 8 j + 2 t + b, where t < 4, j < 2, b < 2. Groups that are not whole and columns to a multiple of
// kPackedColumns are zeros.
constexpr int64_t kPackedColumns = 128;

// r, z = sigmoid(sums + xg), rh = r . h. Columns: r, z.
struct ConvGruResetUpdate {
  const void* xg;  // (B, S, 3C): the input's part of r, z, n, bias and all
  const void* h;   // (B, S, C)
  void* rh;        // (B, S, C)
  void* r;         // (B, S, Cp); null: not kept
  void* z;         // (B, S, Cp)
};

// n = act(sums + xg), h = z . h + (1 - z) . n where the clip has this step. Columns: n.
struct ConvGruCandidate {
  const void* xg;          // (B, S, 3C)
  const void* z;           // (B, S, Cp)
  void* h;                 // (B, S, C) of A; null: only n is computed
  void* output;            // (B, S, C): h, rounded
  void* n;                 // (B, S, Cp); null: not kept
  const int64_t* lengths;  // (B,) or null
  int64_t step;
  Activation activation;
};

// grad_h += sums + grad_output, then from h = z . h + (1 - z) . n: the gradients to what z and n are functions of, and
// grad_h *= z. Columns: grad_h. With z null grad_h is complete: sums are added to it, and nothing else is done.
struct ConvGruCandidateBackward {
  const void* grad_output;  // (B, S, C)
  const void* h;            // (B, S, C): before the step
  const void* z;            // (B, S, Cp)
  const void* n;            // (B, S, Cp)
  void* grad_h;             // (B, S, C) of A
  void* grad_rz;            // (B, S, 2C): its second half is written
  void* grad_n;             // (B, S, C)
  const int64_t* lengths;
  int64_t step;
  Activation activation;
};

// sums = the gradient to rh: the gradient to what r is a function of, and grad_h += sums . r. Columns: rh.
struct ConvGruResetBackward {
  const void* h;  // (B, S, C): before the step
  const void* r;  // (B, S, Cp)
  void* grad_h;   // (B, S, C) of A
  void* grad_rz;  // (B, S, 2C): its first half is written
};

// One launch on `stream`; no element depends on the order of threads. Returns null or what went wrong.
const char* conv_gru_cuda(const ConvGruProduct& product, const ConvGruResetUpdate& gates, DType dtype, void* stream);
const char* conv_gru_cuda(const ConvGruProduct& product, const ConvGruCandidate& gates, DType dtype, void* stream);
const char* conv_gru_cuda(const ConvGruProduct& product, const ConvGruCandidateBackward& gates, DType dtype,
                          void* stream);
const char* conv_gru_cuda(const ConvGruProduct& product, const ConvGruResetBackward& gates, DType dtype, void* stream);

}  // namespace vgkernels
