// conv_gru: a convolutional GRU over a whole video. One step, with * a "same" convolution and . element by element:
//
//     r_t = sigmoid(W_r * [h_(t-1); x_t] + b_r)            reset
//     z_t = sigmoid(W_z * [h_(t-1); x_t] + b_z)            update; DVD-GAN writes u
//     n_t = act(W_n * [r_t . h_(t-1); x_t] + b_n)          candidate; DVD-GAN writes c; act = relu or tanh
//     h_t = z_t . h_(t-1) + (1 - z_t) . n_t
//
// Clark, Donahue, Simonyan: Adversarial Video Generation on Complex Datasets, arXiv 1907.06571, appendix A.2; Ballas et
// al.: Delving Deeper into Convolutional Networks, arXiv 1511.06432. Decides what one call computes; who computes is
// decided in conv_gru_cpu.cpp and the .cu files beside it. Torch-free.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/host_device.h"

namespace vgkernels {

enum class Activation : int { relu, tanh };
inline Activation activation_of(bool tanh) { return tanh ? Activation::tanh : Activation::relu; }
enum class ConvAlgorithm : int { automatic, direct, winograd };

// Sizes of a call. S stands for depth, height, width; k for the kernel's size in every dim of the map.
struct ConvGruShape {
  int64_t steps, batch, input_channels, channels;  // T, B, Cin, C
  int64_t depth, height, width;                    // depth 1 for 2-D maps
  int64_t kernel;                                  // odd
  bool volumes;                                    // the kernel has depth too: k^3 taps, else k^2

  int64_t pixels() const { return depth * height * width; }
  int64_t taps() const { return kernel * kernel * (volumes ? kernel : 1); }
};

// What the forward keeps for the backward: (T, 3, B, S, kept_channels) of the call's dtype, r, z, n of each step.
// Channels are padded to a multiple of 16; what the padding holds is nobody's business.
inline int64_t kept_channels(int64_t channels) { return (channels + 15) / 16 * 16; }

// All arrays are packed, of the call's dtype T or of A, the accumulation dtype: float, or double for double.
struct ConvGruForward {
  ConvGruShape shape;
  const void* x;          // (T, B, Cin, S)
  const void* h0;         // (B, C, S) of A; null: zeros
  const void* weight_ih;  // (3C, Cin, k, k[, k]): rows r, z, n
  const void* weight_hh;  // (3C, C, k, k[, k])
  const void* bias;       // (3C,); null: none
  const int64_t*
      lengths;  // (B,): clip b has steps 0 .. lengths[b] - 1, its state does not change in the others; or null
  Activation activation;
  bool reverse;  // steps T - 1 .. 0
  ConvAlgorithm algorithm;
  void* output;  // (T, B, C, S): h_t, rounded
  void* h_T;     // (B, C, S) of A: the state after the last step done
  void* gates;   // as above; null: not kept
};

struct ConvGruBackward {
  ConvGruForward forward;   // gates null: r, z, n are computed again; h_T is not read; output is
  const void* grad_output;  // (T, B, C, S)
  const void* grad_h_T;     // (B, C, S) of A
  void* grad_x;             // null here and below: not asked for
  void* grad_h0;            // (B, C, S) of A
  void* grad_weight_ih;
  void* grad_weight_hh;
  void* grad_bias;
};

}  // namespace vgkernels
