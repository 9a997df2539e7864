// Decides the loops of flow_warp_pixels.h anew for pixels of four floats, what an RGB frame is packed to, where a
// vector holds four of them (AVX-512): a tap and its right neighbour are one load, a quad of pixels one vector.

#undef VG_QUADS
#define VG_QUADS (VG_ISA_BYTES == 64 && VG_HAS_ISA_CLONES)
#if VG_QUADS
template <class T, int G, bool Fixed>
constexpr bool kQuads = Fixed && G == 4 && std::is_same_v<T, float>;

using Quad = Vector<float, 16>;
using Half = Vector<float, 8>;  // two pixels side by side: a tap and its right neighbour

VG_INLINE Quad join(Half low, Half high) {
  return (Quad)_mm512_insertf32x8(_mm512_castps256_ps512((__m256)low), (__m256)high, 1);
}
// Lane groups of four: those of the left taps, then those of the right taps.
VG_INLINE Quad left_taps(Quad pair01, Quad pair23) {
  return (Quad)_mm512_shuffle_f32x4((__m512)pair01, (__m512)pair23, 0x88);
}
VG_INLINE Quad right_taps(Quad pair01, Quad pair23) {
  return (Quad)_mm512_shuffle_f32x4((__m512)pair01, (__m512)pair23, 0xDD);
}
// Element i + k of `from`, k = 0 .. 3, in all lanes of group k.
VG_INLINE Quad spread(const float* from) {
  const __m512i lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  return (Quad)_mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(_mm_loadu_ps(from)));
}
VG_INLINE bool all_four(const int32_t* bits) { return (bits[0] & bits[1] & bits[2] & bits[3]) == 15; }

// The taps of pixels i .. i + 3.
struct QuadTaps {
  Quad tap[4];
  VG_INLINE QuadTaps(const TapPointers<const float>& at, int i) {
    const float *t0 = at.data + at.top[i] * 4, *t1 = at.data + at.top[i + 1] * 4, *t2 = at.data + at.top[i + 2] * 4,
                *t3 = at.data + at.top[i + 3] * 4;
    const float *b0 = at.data + at.bottom[i] * 4, *b1 = at.data + at.bottom[i + 1] * 4,
                *b2 = at.data + at.bottom[i + 2] * 4, *b3 = at.data + at.bottom[i + 3] * 4;
    const Quad top01 = join(load<float, 8>(t0), load<float, 8>(t1)),
               top23 = join(load<float, 8>(t2), load<float, 8>(t3));
    const Quad low01 = join(load<float, 8>(b0), load<float, 8>(b1)),
               low23 = join(load<float, 8>(b2), load<float, 8>(b3));
    tap[0] = left_taps(top01, top23);
    tap[1] = right_taps(top01, top23);
    tap[2] = left_taps(low01, low23);
    tap[3] = right_taps(low01, low23);
  }
};

// Pixels i .. i + 3 of warp_block; false where a tap is missing.
VG_INLINE bool warp_quad(const Taps<float>& taps, int i, const TapPointers<const float>& at, const float* mask,
                         const float* painted, float* out) {
  if (!all_four(taps.loaded + i)) return false;
  const QuadTaps four(at, i);
  Quad sum = spread(taps.weight[0] + i) * four.tap[0];
#pragma GCC unroll 3
  for (int k = 1; k < 4; ++k) sum += spread(taps.weight[k] + i) * four.tap[k];
  if (mask) {
    const Quad m = spread(mask + i);
    sum = (1 - m) * sum + m * load<float, 16>(painted + i * 4);
  }
  store<float, 16>(out + i * 4, sum);
  return true;
}

// Pixels i .. i + 3 of dot_block; false where a tap is outside.
VG_INLINE bool dot_quad(const Taps<float>& taps, int i, const TapPointers<const float>& at, const float* grad_out,
                        float* dots) {
  if (!all_four(taps.inside + i)) return false;
  const QuadTaps four(at, i);
  const Quad g = load<float, 16>(grad_out + i * 4);
  Quad product[4];
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) product[k] = g * four.tap[k];
  // In every group of lanes: p0 p1 p2 p3 and q0 q1 q2 q3 to p0+p2 q0+q2 p1+p3 q1+q3, then the like of all four
  // products.
  const auto add_halves = [](Quad p, Quad q) __attribute__((always_inline)) {
    return (Quad)_mm512_unpacklo_ps((__m512)p, (__m512)q) + (Quad)_mm512_unpackhi_ps((__m512)p, (__m512)q);
  };
  const Quad first = add_halves(product[0], product[1]), second = add_halves(product[2], product[3]);
  const Quad low = (Quad)_mm512_shuffle_ps((__m512)first, (__m512)second, 0x44);
  const Quad high = (Quad)_mm512_shuffle_ps((__m512)first, (__m512)second, 0xEE);
  store<float, 16>(dots + i * 4, low + high);
  return true;
}
#endif
