// Decides the loops for planes of few channels (RGB): vectors run along the pixels of a row and gather their taps from each
// plane, so nothing is packed. float only. Compiled once per instruction set; leaves rows and threads to _stages.h.

constexpr int kLanes = VG_ISA_BYTES / int(sizeof(float));
using Lanes = Vector<float, kLanes>;

// The taps of kLanes neighbouring pixels, all inside the image; a tap without weight reads as 0.
struct GatheredTaps {
  Lanes value[4];
};

VG_INLINE GatheredTaps gather_taps(const float* plane, const int32_t* index, int64_t W) {
  GatheredTaps taps;
  gather_pairs<kLanes>(plane, index, taps.value[0], taps.value[1]);
  gather_pairs<kLanes>(plane + W, index, taps.value[2], taps.value[3]);
  return taps;
}

// Whether pixels i .. i + kLanes - 1 exist and have all their taps inside; then index gets where their taps 0 are.
VG_INLINE bool all_inside(const Taps<float>& taps, int i, int n, int64_t W, int32_t* index) {
  if (i + kLanes > n) return false;
  int32_t inside = 15;
  for (int j = 0; j < kLanes; ++j) {
    inside &= taps.inside[i + j];
    index[j] = taps.y[i + j] * int32_t(W) + taps.x[i + j];
  }
  return inside == 15;
}

// image: (C, H, W); painted, out: (C, pixels), from the block's first pixel on.
inline void warp_planes(const FlowWarpParams& p, const Taps<float>& taps, int n, const float* image, const float* mask,
                        const float* painted, float* out) {
  const int64_t plane = p.H * p.W, pixels = p.Ho * p.Wo;
  int32_t index[kLanes];
  for (int i = 0; i < n;) {
    if (all_inside(taps, i, n, p.W, index)) {
      Lanes w[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) w[k] = load<float, kLanes>(taps.weight[k] + i);
      for (int64_t c = 0; c < p.C; ++c) {
        const GatheredTaps tap = gather_taps(image + c * plane, index, p.W);
        Lanes sum = {};
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) sum += w[k] * (w[k] != 0 ? tap.value[k] : Lanes{});
        if (mask) {
          const Lanes m = load<float, kLanes>(mask + i);
          sum = (1 - m) * sum + m * load<float, kLanes>(painted + c * pixels + i);
        }
        store<float, kLanes>(out + c * pixels + i, sum);
      }
      i += kLanes;
    } else {
      for (const int stop = std::min(n, i + kLanes); i < stop; ++i)
        for (int64_t c = 0; c < p.C; ++c) {
          float sum = 0;
          for (int k = 0; k < 4; ++k)
            if (taps.loaded[i] >> k & 1)
              sum += taps.weight[k][i] * image[c * plane + (taps.y[i] + (k >> 1)) * p.W + taps.x[i] + (k & 1)];
          out[c * pixels + i] = mask ? (1 - mask[i]) * sum + mask[i] * painted[c * pixels + i] : sum;
        }
    }
  }
}

// dots[k][i] = sum over the channels of grad_out(i) tap_k(i); image (C, H, W), grad_out (C, pixels) from the first pixel on.
inline void dot_planes(const FlowWarpParams& p, const Taps<float>& taps, int n, const float* image, const float* grad_out,
                       float (&dots)[4][kBlock]) {
  const int64_t plane = p.H * p.W, pixels = p.Ho * p.Wo;
  int32_t index[kLanes];
  for (int i = 0; i < n;) {
    if (all_inside(taps, i, n, p.W, index)) {
      Lanes sum[4] = {};
      for (int64_t c = 0; c < p.C; ++c) {
        const GatheredTaps tap = gather_taps(image + c * plane, index, p.W);
        const Lanes g = load<float, kLanes>(grad_out + c * pixels + i);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) sum[k] += g * tap.value[k];
      }
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) store<float, kLanes>(dots[k] + i, sum[k]);
      i += kLanes;
    } else {
      for (const int stop = std::min(n, i + kLanes); i < stop; ++i)
        for (int k = 0; k < 4; ++k) {
          float sum = 0;
          if (taps.inside[i] >> k & 1)
            for (int64_t c = 0; c < p.C; ++c)
              sum += grad_out[c * pixels + i] *
                     image[c * plane + (taps.y[i] + (k >> 1)) * p.W + taps.x[i] + (k & 1)];
          dots[k][i] = sum;
        }
    }
  }
}

// The composite's own terms, as in painted_block; painted and grad_painted (C, pixels) from the block's first pixel on.
inline void painted_planes(const FlowWarpParams& p, int n, const float* mask, const float* grad_out, const float* painted,
                           float* dot, float* grad_painted) {
  const int64_t pixels = p.Ho * p.Wo;
  for (int i = 0; dot && i < n; ++i) dot[i] = 0;
  for (int64_t c = 0; c < p.C; ++c) {
    const float* g = grad_out + c * pixels;
    for (int i = 0; dot && i < n; ++i) dot[i] += g[i] * painted[c * pixels + i];
    for (int i = 0; grad_painted && i < n; ++i) grad_painted[c * pixels + i] = mask[i] * g[i];
  }
}
