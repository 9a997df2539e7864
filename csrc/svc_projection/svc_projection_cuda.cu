// svc_projection on CUDA: the list of launches, the same for any data, and the workspace. What a layer needs is decided
// on the device, launch by launch; a block whose layer has no part in a launch returns at once. Nothing waits.
//
// The list has about 350 launches, most of which return at once: never less than some 0.4 ms. The next step, with a GPU
// to measure it on, is one cooperative launch: the same device functions, a grid barrier in place of each launch, and
// loops that end when no layer has a part in them.
#include <cmath>

#include "common/workspace.h"
#include "svc_projection/svc_projection_cuda.h"
#include "svc_projection/svc_projection_layers_cuda.h"

namespace vgkernels {
namespace svc_cuda {
namespace {

constexpr int kParameters = 24;  // layers that a launch brings
constexpr int kMostSplits = 8;
constexpr size_t kApplyShared = 16 << 10;  // static shared memory of apply, and room

struct Chunk {
  Layer layers[kParameters];
  int first, count;
};
static_assert(sizeof(Problem) + sizeof(Chunk) <= 4096, "parameters of a launch, on every device");

// One thread = one layer. Grid: one block.
__global__ void describe(Problem p, Chunk chunk) {
  if (int(threadIdx.x) >= chunk.count) return;
  const int i = chunk.first + int(threadIdx.x);
  Control control{};
  control.in_double = chunk.layers[threadIdx.x].always_double;
  p.layers[i] = chunk.layers[threadIdx.x];
  p.controls[i] = control;
  if (i == 0) *p.any_nonfinite = 0;
}

// One thread = one layer. Grid: 256 layers a block.
__global__ void write_report(Problem p, SvcReport* report) {
  const int i = int(blockIdx.x * kThreads + threadIdx.x);
  if (i >= p.count) return;
  const Control& control = p.controls[i];
  const bool nonfinite = control.phase == Phase::nonfinite, inside = control.phase == Phase::inside;
  const SvcState state = nonfinite                       ? SvcState::nonfinite
                         : inside && control.rounds == 0 ? SvcState::inside
                                                         : SvcState::clipped;
  report[i] = {double(int(state)), control.above, nonfinite ? NAN : control.largest, double(inside)};
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t tiles_of_matrix(int64_t m, int64_t tile) { return divide_up(m, tile) * (divide_up(m, tile) + 1) / 2; }

// How the columns of the Gram sum are split: by the shape alone, so that the result does not depend on other layers.
int64_t split_columns_of(const SvcMatrix& w) {
  return policy.split_columns * divide_up(w.columns, policy.split_columns * kMostSplits);
}

// What a layer's buffers take, in doubles: any layer may come to need them.
int64_t buffer_doubles(const SvcMatrix& w) {
  const int64_t m = w.rows, edge = std::min<int64_t>(m, kGramTile);
  const int64_t parts = divide_up(w.columns, split_columns_of(w)) * tiles_of_matrix(m, kGramTile) * edge * edge;
  return m * m + std::max((kBuffers - 1) * m * m, parts);
}

struct Workspace {
  Layer* layers;
  Control* controls;
  double2* sums;
  int* any_nonfinite;
  Pieces pieces;
  Workspace(const SvcMatrix* matrices, int64_t count, void* memory) : pieces{static_cast<char*>(memory)} {
    int64_t tiles = 0;
    for (int64_t i = 0; i < count; i++) tiles += tiles_of_matrix(matrices[i].rows, kTile);
    layers = pieces.take<Layer>(count);
    controls = pieces.take<Control>(count);
    sums = pieces.take<double2>(2 * tiles);
    any_nonfinite = pieces.take<int>(1);
  }
};

int double_sign_steps(DType dtype) { return dtype == DType::float64 ? kSvcSignSteps : kSvcSignStepsWide; }

// Where the work of the next layer begins.
struct Totals {
  int64_t items = 0, tiles = 0, strips = 0;
  size_t shared_bytes = 0;
};

Layer layer_of(const SvcMatrix& w, DType dtype, size_t most_shared, char* buffers, Totals* totals) {
  Layer layer{};
  const size_t element = dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
  const bool in_range = w.bound >= kSvcLeastBound && w.bound <= kSvcLargestBound;
  layer.matrix = w;
  layer.buffers = buffers;
  layer.unit = 1 / (w.bound * w.bound);
  layer.limit = 2 * std::log2(1 + svc_tolerance(dtype, w.rows));
  layer.always_double = dtype == DType::float64 || !in_range;
  layer.double_sign_steps = double_sign_steps(dtype);
  layer.split_columns = int(split_columns_of(w));
  layer.splits = int(divide_up(w.columns, layer.split_columns));
  layer.strip_columns = kStrip;
  const auto strip_bytes = [&] { return size_t(w.rows) * layer.strip_columns * element; };
  while (layer.strip_columns > 1 && strip_bytes() > most_shared) layer.strip_columns /= 2;
  layer.first_item = int(totals->items), layer.first_tile = int(totals->tiles), layer.first_strip = int(totals->strips);
  totals->items += layer.splits * tiles_of_matrix(w.rows, kGramTile);
  totals->tiles += tiles_of_matrix(w.rows, kTile);
  totals->strips += divide_up(w.columns, layer.strip_columns);
  totals->shared_bytes = std::max(totals->shared_bytes, strip_bytes());
  return layer;
}

// The most dynamic shared memory of a block of apply, which has static memory too.
const char* shared_limit(size_t* bytes) {
  int device, limit;
  if (cudaError_t error = cudaGetDevice(&device)) return cudaGetErrorString(error);
  if (cudaError_t error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device))
    return cudaGetErrorString(error);
  *bytes = size_t(std::min<int64_t>(limit - int64_t(kApplyShared), policy.shared_bytes));
  return nullptr;
}

const char* measure(const Problem& p, DType dtype, void* stream) {
  if (dtype != DType::float64) {
    if (const char* error = gram_parts(p, dtype, false, stream)) return error;
    certify(p, false, kSvcSquarings, stream);
  }
  if (const char* error = gram_parts(p, dtype, true, stream)) return error;
  certify(p, true, dtype == DType::float64 ? kSvcSquaringsFloat64 : kSvcSquarings, stream);
  return launch_error();
}

}  // namespace
}  // namespace svc_cuda

int64_t svc_projection_workspace_cuda(const SvcMatrix* matrices, int64_t count, DType) {
  Pieces pieces = svc_cuda::Workspace(matrices, count, nullptr).pieces;
  for (int64_t i = 0; i < count; i++) pieces.take<double>(svc_cuda::buffer_doubles(matrices[i]));
  return pieces.used;
}

const char* svc_projection_cuda(const SvcMatrix* matrices, int64_t count, DType dtype, bool skip_nonfinite,
                                SvcReport* report, void* workspace, void* stream) {
  using namespace svc_cuda;
  if (count == 0) return nullptr;
  size_t most_shared;
  if (const char* error = shared_limit(&most_shared)) return error;
  Workspace space(matrices, count, workspace);
  Problem p{space.layers, space.controls, space.sums, space.any_nonfinite, int(count), 0, 0, 0, {}, skip_nonfinite};
  for (int row = 0; row < kSvcRootSteps; row++) p.reach[row] = 2 * std::log2(kSvcRootRows[row].u);
  Totals totals;
  for (int64_t first = 0; first < count; first += kParameters) {
    Chunk chunk{};
    chunk.first = int(first), chunk.count = int(std::min<int64_t>(kParameters, count - first));
    for (int i = 0; i < chunk.count; i++) {
      const SvcMatrix& w = matrices[first + i];
      char* buffers = reinterpret_cast<char*>(space.pieces.take<double>(buffer_doubles(w)));
      chunk.layers[i] = layer_of(w, dtype, most_shared, buffers, &totals);
    }
    VG_LAUNCH(describe, dim3(1), dim3(32), 0, stream, p, chunk);
  }
  if (totals.shared_bytes > most_shared)
    return "svc_projection: the matrix has too many rows for a GPU's shared memory";
  if (std::max({totals.items, 2 * totals.tiles, totals.strips}) > (int64_t(1) << 31) - 1)
    return "svc_projection: too much for one CUDA launch";
  p.items = int(totals.items), p.tiles = int(totals.tiles), p.strips = int(totals.strips);

  const char* error = measure(p, dtype, stream);
  for (int round = 0; round < policy.rounds && !error; round++) {
    project(p, double_sign_steps(dtype), stream);
    error = apply(p, dtype, totals.shared_bytes, stream);
    if (!error) error = measure(p, dtype, stream);
  }
  if (error) return error;
  VG_LAUNCH(write_report, dim3(unsigned(divide_up(count, kThreads))), dim3(kThreads), 0, stream, p, report);
  return launch_error();
}

}  // namespace vgkernels
