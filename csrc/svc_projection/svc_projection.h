// svc_projection: the nearest matrix (Frobenius norm) whose singular values are at most c.
//
//     W = U diag(s) V^T    ->    W' = U diag(min(s, c)) V^T = h(W W^T) W,    h(l) = min(1, c / sqrt(l))
//
// Saito, Matsumoto, Saito: Temporal Generative Adversarial Nets (TGAN), arXiv 1611.06624, section 3.3. Decides what a
// matrix, a bound and a report are; who computes is decided in svc_projection_cpu.cpp and svc_projection_cuda.cu.
// Torch-free.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/dtype.h"
#include "common/host_device.h"

namespace vgkernels {

// One weight as a matrix that is not taller than wide: element (i, j) is data[i * row_stride + j * column_stride].
// One of the strides is 1, no two elements share a place. A tall matrix comes as its transpose: same singular values.
struct SvcMatrix {
  void* data;
  int64_t rows, columns;              // m <= n, m >= 1
  int64_t row_stride, column_stride;  // in elements
  double bound;                       // c > 0, finite
};

enum class SvcState : int { inside, clipped, nonfinite };

// What happened to one matrix; the torch door shows it as a row of float64.
struct SvcReport {
  double state;      // an SvcState; nonfinite: a NaN, an Inf, or ||W||_F above 1e75; left as it was
  double clipped;    // how many singular values were above c; those within the tolerance may count or not
  double largest;    // the largest one before; an upper bound where the state is inside; NaN where nonfinite
  double certified;  // 1: the result's singular values are proven to be at most c (1 + tolerance)
};

// A singular value up to c (1 + tolerance) counts as c: what the Gram matrix can tell in the arithmetic of the dtype
// (float32: measured, its rounding moves one near c by at most 1e-6 of c, constant matrices being the worst), and what
// rounding to storage costs.
VG_HOST_DEVICE double svc_tolerance(DType dtype, int64_t rows) {
  switch (dtype) {
    case DType::float64:
      return 1e-14 * sqrt(double(rows));
    case DType::float16:
      return 0x1p-11;
    case DType::bfloat16:
      return 0x1p-8;
    default:
      return 3e-6;
  }
}

// Gram matrices in float32 serve spectra up to 2.5 c, and bounds whose fourth powers float32 holds; beyond, in float64.
constexpr double kSvcWide = 2.5, kSvcLeastBound = 1e-6, kSvcLargestBound = 1e6;

}  // namespace vgkernels
