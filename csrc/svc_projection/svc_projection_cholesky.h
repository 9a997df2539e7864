// Decides whether a symmetric matrix is positive definite, by factoring it: the certificate of this room. It is exact
// where an estimate of the largest singular value is not: t I - G has a factor if and only if all eigenvalues are below
// t, up to the rounding of the arithmetic. Compiled once per instruction set.

// M = R^T R in place, R upper; M comes with its strips down to the diagonal blocks, `rows` a multiple of kStrip. Strips
// past the square part become R^-T times what they were. False: M is not positive definite (or not a number).
template <class A>
bool cholesky(Lines<A> m, int64_t rows, int64_t strips) {
  constexpr int S = kStrip<A>;
  using Line = Pixel<A, S>;
  const Lines<const A> factored = read(m);
  for (int64_t block = 0; block * S < rows; ++block) {
    const int64_t first = block * S;
    product<Into::subtract>(m, factored, factored, first, first, first + S, block, strips);
    A factor[S][S], inverse[S];  // of the diagonal block: R, and 1 / its diagonal
    for (int64_t s = block; s < strips; ++s) {
      Line line[S];
      for (int r = 0; r < S; ++r) {
        line[r] = load_pixel<A, S>(m.line(first + r, s));
        for (int q = 0; q < r; ++q) add_scaled(line[r], -factor[q][r], line[q]);
        if (s == block) {
          store_pixel(factor[r], line[r]);
          if (!(factor[r][r] > 0)) return false;
          inverse[r] = A(1) / std::sqrt(factor[r][r]);
        }
        line[r] = inverse[r] * line[r];
        if (s == block) store_pixel(factor[r], line[r]);
        store_pixel(m.line(first + r, s), line[r]);
      }
    }
  }
  return true;
}
