// What the torch door calls of conv_gru's persistent CUDA kernels: all steps of the recurrence in one cooperative
// launch, or all of its backward, for 16-bit dtypes and small 2-D maps. A block keeps 8 channels' weights in shared
// memory and their state in registers from the first step to the last; blocks exchange h and r . h through L2, and wait
// for each other twice a step. Channels are innermost in all arrays here. Torch-free and CUDA-free.
#pragma once

#include "conv_gru/conv_gru.h"

namespace vgkernels {

// How the work is cut: a block has 8 channels of some clips, all clips have as many blocks as fill the device.
struct ConvGruPersistentPlan {
  int clips;        // of a block
  int clip_blocks;  // with those clips; the last has fewer, and one beyond the batch has none
  int warps;        // of a block
  int tiles;        // of 16 pixels, of a warp: 1, 2 or 4
  int64_t shared_bytes;
};

// Null and a plan, or why this call is none for these kernels: its dtype, volumes, channels that are no multiple of 32,
// or more than the current device has room for, where a block needs a multiprocessor of its own and in its shared
// memory 48 C taps bytes of weights and 128 bytes for each pixel, 512 pixels at most. input_channels and steps are not
// read.
const char* conv_gru_persistent_plan(const ConvGruShape& shape, DType dtype, ConvGruPersistentPlan* plan);

struct ConvGruPersistent {
  ConvGruShape shape;  // input_channels are not read
  const void* xg;      // (T, B, S, 3C): the input's part of r, z, n, bias and all
  const void* weight;  // weight_hh (3C, C, k, k)
  const int64_t* lengths;
  Activation activation;
  bool reverse;
  float* h;      // (B, S, C): before the first step, then after the last
  void* output;  // (T, B, S, C)
  void* gates;   // (T, 3, B, S, C), C being kept_channels; null: not kept
};

struct ConvGruPersistentBackward {
  ConvGruShape shape;
  const void* grad_output;  // (T, B, S, C)
  const void* past;         // (T, B, S, C): h before each step
  const void* gates;        // (T, 3, B, S, C)
  const void* weight;       // weight_hh
  const int64_t* lengths;
  Activation activation;
  bool reverse;
  float* grad_h;  // (B, S, C): to h after the last step, then to h before the first
  void* grad_rz;  // (T, B, S, 2C): to what r and z are sigmoids of
  void* grad_n;   // (T, B, S, C): to what n is act of
};

// Bytes that a call needs besides, at a multiple of 256.
int64_t conv_gru_persistent_workspace(const ConvGruShape& shape);

// Null, or what went wrong; nothing waits for the device. The same bits for any plan.
const char* conv_gru_persistent_cuda(const ConvGruPersistent& call, const ConvGruPersistentPlan& plan, DType dtype,
                                     void* workspace, void* stream);
const char* conv_gru_persistent_cuda(const ConvGruPersistentBackward& call, const ConvGruPersistentPlan& plan,
                                     DType dtype, void* workspace, void* stream);

}  // namespace vgkernels
