// The (m, m) part of svc_projection on CUDA: G from its partial sums, the certificate, the sign and the inverse root,
// all products of symmetric matrices, and what the device decides about a layer on the way. The coefficients are those
// of svc_projection_sign.h; W itself is touched in svc_projection_weights_cuda.cu only.
#include "svc_projection/svc_projection_layers_cuda.h"

namespace vgkernels {
namespace svc_cuda {
namespace {

// ---- what is in which of a layer's buffers ----

constexpr int kNone = -1;
constexpr int kGram = 0, kSquare = 1, kFourth = 2, kSign = 4;                  // G, then A 2 / size; Y; Y^2; the last X
constexpr int kRootSquare = 4, kHalf = 0;                                      // R^2; R between its two factors I + H
VG_HOST_DEVICE int power_buffer(int k) { return k == 0 ? kGram : 1 + k % 2; }  // G^(2^k)
VG_HOST_DEVICE int sign_buffer(int row) { return kSign - (kSvcSignSteps - 1 - row) % 2; }  // X after this row
VG_HOST_DEVICE int rest_buffer(int row) { return 1 + row % 3; }                            // R before this row
VG_HOST_DEVICE int change_buffer(int row) { return 1 + (row + 1) % 3; }                    // E before it, R after
VG_HOST_DEVICE int change_buffer_after(int row) { return 1 + (row + 2) % 3; }

// ---- decisions, each by one thread of the block that finishes a layer's step ----

// How a layer is clipped whose largest eigenvalue of G is at most 2^high.
__device__ __forceinline__ void plan(const Problem& p, const Layer& layer, Control& control, double high) {
  // Beyond the reach of the root, this projection is to a larger bound, and the next one goes on.
  const double shrink = fmax(0.0, ceil(high - (p.reach[0] - 0.01)));
  high -= shrink;
  control.shrink = exp2(-shrink);
  control.size = exp2(ceil(log2(fmax(1.0, exp2(high) - 1))));
  control.first_sign = kSvcSignSteps - (control.in_double ? layer.double_sign_steps : kSvcSignStepsFloat);
  control.first_root = 0;
#pragma unroll
  for (int row = 1; row < kSvcRootSteps; row++)
    if (p.reach[row] >= high + 0.001) control.first_root = row;
  control.last_root = control.in_double ? kSvcRootSteps - 1 : kSvcRootSteps - 2;
  control.phase = Phase::outside;
}

// From X = G^(2^k) as it is held: the sum of its squares and, for k = 0, its trace. ||X||_F^(1 / 2^k) is an upper bound
// of the largest eigenvalue of G, and divided by m^(1 / 2^(k + 1)) a lower one.
__device__ __forceinline__ void decide(const Problem& p, const Layer& layer, Control& control, int k, bool last,
                                       double2 sums) {
  const double bound = layer.matrix.bound;
  double norm = sqrt(sums.x);
  if (k == 0) {
    control.log2_scale = 0;
    if (!(sums.y * bound * bound <= kSvcLargestTrace)) {  // NaN too
      if (control.in_double && control.rounds) {
        control.phase = Phase::failed;
      } else if (control.in_double) {
        control.phase = Phase::nonfinite;
        (void)atomicExch(p.any_nonfinite, 1);  // atomic: blocks of other layers write it too
      }
      control.in_double = true;
      return;
    }
    if (!(norm > 0 && norm < INFINITY)) norm = sums.y;  // squares beyond double: the trace is a bound as well
  }
  const double exponent = exp2(-double(k));
  const double high = norm > 0 ? control.log2_scale + log2(norm) * exponent : -INFINITY;
  const double low = high - log2(double(layer.m())) * exponent / 2;
  const double wide = 2 * log2(kSvcSignWide);
  const bool settled = high - low <= kSvcResolution && (control.in_double || high <= wide);
  const bool beyond = !control.in_double && low > wide;
  if (high <= layer.limit) {
    control.phase = Phase::inside;
  } else if (last || (low > layer.limit && (settled || beyond))) {
    if (control.in_double || high <= wide)
      plan(p, layer, control, high);
    else
      control.in_double = true;
  } else {
    const int factor = ilogb(norm);
    control.log2_scale += factor * exponent;
    control.factor = exp2(-double(factor));
  }
  if (control.phase != Phase::measuring && control.rounds == 0) control.largest = bound * exp2(high / 2);
}

// ---- the product ----

// out = a M + add (M - I) + d I with M = c0 I + c1 b1 + c2 b2: numbers of buffers, kNone for zeros.
struct Product {
  int a, b1, b2, out;
  double c0, c1, c2, d;
  bool add;
};

enum class Kind { square, sign, positive, root };

struct Step {
  Kind kind;
  int row;    // of the table; of a square: k of the result
  bool sums;  // whether something is decided from the products
  Product first;
  Product second{};                      // if the grid has two rows
  bool in_double = false, last = false;  // of a square: for which layers, and whether no other follows
};

// Writes a tile and its mirror image: value(row, column, the element in `held`). Returns the thread's part of the sums
// of squares and of the diagonal. `held` must be readable by all threads, and is changed.
template <class A, class Value>
__device__ __forceinline__ double2 store_tile(A* matrix, int m, Tile tile, A (*held)[kTile + 1], const Value& value) {
  double2 sums = make_double2(0, 0);
  for (int item = int(threadIdx.x); item < kTile * kTile; item += kThreads) {
    const int i = item / kTile, j = item % kTile, row = tile.row * kTile + i, column = tile.column * kTile + j;
    if (row >= m || column > row) continue;
    const A result = value(row, column, held[i][j]);
    held[i][j] = result;
    matrix[size_t(row) * m + column] = result;
    sums.x += (row == column ? 1 : 2) * double(result) * double(result);
    if (row == column) sums.y += double(result);
  }
  __syncthreads();  // the tile's values are in `held`
  for (int item = int(threadIdx.x); item < kTile * kTile; item += kThreads) {
    const int i = item % kTile, j = item / kTile, row = tile.row * kTile + i, column = tile.column * kTile + j;
    if (row < m && column < row) matrix[size_t(column) * m + row] = held[i][j];
  }
  return sums;
}

// One tile of a product. The threads are four groups of 64; each takes a quarter of the columns k of a chunk for the
// whole tile, 4 x 4 elements a thread; the quarters are added in fixed order.
template <class A>
__device__ __forceinline__ double2 product_tile(const Layer& layer, const Product& product, double a_factor,
                                                double b_factor, Tile tile) {
  VG_SHARED(A, rows, [kTile][kTile + 1]);     // [k][row of the tile] of a; then sums of groups
  VG_SHARED(A, columns, [kTile][kTile + 1]);  // [k][column of the tile] of M; then sums of groups
  const int m = layer.m(), thread = int(threadIdx.x), group = thread / 64;
  const int first_row = thread % 64 / 8, first_column = thread % 8;
  const A* a = product.a == kNone ? nullptr : layer.buffer<A>(product.a);     // (m, m)
  const A* b1 = product.b1 == kNone ? nullptr : layer.buffer<A>(product.b1);  // (m, m)
  const A* b2 = product.b2 == kNone ? nullptr : layer.buffer<A>(product.b2);  // (m, m)
  const A fa = A(a_factor), c0 = A(product.c0 * b_factor), c1 = A(product.c1 * b_factor), c2 = A(product.c2 * b_factor);
  A sum[4][4] = {};
  for (int chunk = 0; a && chunk < m; chunk += kTile) {
    __syncthreads();  // the chunk before has been read
#pragma unroll
    for (int i = thread / kTile; i < kTile; i += kThreads / kTile) {
      const int k = chunk + thread % kTile, row = tile.row * kTile + i, column = tile.column * kTile + i;
      A value = 0, mixed = 0;
      if (k < m && row < m) value = fa * a[size_t(row) * m + k];
      if (k < m && column < m) {
        const size_t at = size_t(column) * m + k;
        if (b2) mixed = c2 * b2[at];
        mixed += c1 * b1[at];
        if (column == k) mixed += c0;
      }
      rows[thread % kTile][i] = value;
      columns[thread % kTile][i] = mixed;
    }
    __syncthreads();  // the chunk is there
#pragma unroll 4
    for (int k = group * 8; k < group * 8 + 8; k++) {
      A x[4], y[4];
#pragma unroll
      for (int i = 0; i < 4; i++) x[i] = rows[k][first_row + 8 * i], y[i] = columns[k][first_column + 8 * i];
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] += x[i] * y[j];
    }
  }
  __syncthreads();  // the last chunk has been read: its place is free
  // (0 + 2) + (1 + 3): a thread only touches the four groups' sums of its own elements.
  for (int from = 2; from; from /= 2) {
    A(*held)[kTile + 1] = from == 1 || group % 2 ? columns : rows;
    if (group >= from && group < 2 * from)
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) held[first_row + 8 * i][first_column + 8 * j] = sum[i][j];
    __syncthreads();  // the upper groups' sums are there
    if (group < from)
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] += held[first_row + 8 * i][first_column + 8 * j];
  }
  if (group == 0)
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) rows[first_row + 8 * i][first_column + 8 * j] = sum[i][j];
  __syncthreads();  // the tile is in `rows`
  return store_tile(layer.buffer<A>(product.out), m, tile, rows, [&](int row, int column, A value) {
    const size_t at = size_t(row) * m + column;
    if (product.add) {
      if (b2) value += c2 * b2[at];
      value += c1 * b1[at];
    }
    return row == column ? value + A(product.d) : value;
  });
}

// Whether a layer takes part; puts in the buffers that depend on where the layer began.
__device__ __forceinline__ bool takes_part(const Step& step, const Control& control, Product* product) {
  const Phase wanted = step.kind == Kind::square ? Phase::measuring : Phase::projecting;
  if (control.phase != wanted) return false;
  switch (step.kind) {
    case Kind::square:
      return control.in_double == step.in_double;
    case Kind::sign:
      if (step.row == control.first_sign) {
        if (product->a == sign_buffer(step.row - 1)) product->a = kGram;
        if (product->b1 == sign_buffer(step.row - 1)) product->b1 = kGram;
      }
      return step.row >= control.first_sign;
    case Kind::positive:
      product->out = rest_buffer(control.first_root);
      return true;
    default:
      if (step.row == control.first_root && product->a == change_buffer(step.row)) product->a = kNone;
      return step.row >= control.first_root && step.row <= control.last_root;
  }
}

// Block: one tile of one layer; blockIdx.y: the first or second product. Grid: all tiles of all layers.
__global__ void __launch_bounds__(kThreads, 2) multiply(Problem p, Step step) {
  const Place place = place_of(p, &Layer::first_tile);
  const Layer& layer = p.layers[place.layer];
  Control& control = p.controls[place.layer];
  Product product = blockIdx.y ? step.second : step.first;
  if (!takes_part(step, control, &product)) return;
  const double a_factor = step.kind == Kind::square ? control.factor : 1;
  const double b_factor = step.kind == Kind::positive ? control.size / 4 : a_factor;
  const Tile tile = tile_of(place.index);
  const double2 part = control.in_double ? product_tile<double>(layer, product, a_factor, b_factor, tile)
                                         : product_tile<float>(layer, product, a_factor, b_factor, tile);
  double2 sums;
  const int tiles = tiles_of(layer.side(kTile));
  if (!step.sums) return;
  if (!is_last(p, place, int(blockIdx.y) * tiles + place.index, int(gridDim.y) * tiles, part, &sums)) return;
  if (threadIdx.x) return;
  if (step.kind == Kind::square) {
    decide(p, layer, control, step.row, step.last, sums);
  } else if (step.kind == Kind::sign) {
    if (control.rounds == 0) control.above = rint((layer.m() + sums.y) / 2);
  } else if (step.row == control.last_root) {
    control.phase = sums.x < INFINITY ? Phase::changing : Phase::failed;
    control.change = change_buffer_after(step.row);
  }
}

template <class A>
__device__ __forceinline__ double2 sum_tile(const Layer& layer, Tile tile) {
  VG_SHARED(A, held, [kTile][kTile + 1]);
  const A* parts = layer.parts<A>();  // (splits, tiles of G, edge, edge)
  const int edge = layer.edge();
  const size_t split = size_t(tiles_of(layer.side(kGramTile))) * edge * edge;
  return store_tile(layer.buffer<A>(kGram), layer.m(), tile, held, [&](int row, int column, A) {
    const int part = tiles_of(row / kGramTile) + column / kGramTile;
    const size_t at = (size_t(part) * edge + row % kGramTile) * edge + column % kGramTile;
    double sum = 0;
    for (int i = 0; i < layer.splits; i++) sum += double(parts[i * split + at]);
    return A(sum * layer.unit);
  });
}

// Block: one tile of G of one layer. Grid: all tiles.
__global__ void __launch_bounds__(kThreads, 4) sum_gram(Problem p, bool in_double) {
  const Place place = place_of(p, &Layer::first_tile);
  const Layer& layer = p.layers[place.layer];
  Control& control = p.controls[place.layer];
  if (control.phase != Phase::measuring || control.in_double != in_double) return;
  const Tile tile = tile_of(place.index);
  const double2 part = in_double ? sum_tile<double>(layer, tile) : sum_tile<float>(layer, tile);
  double2 sums;
  if (is_last(p, place, place.index, tiles_of(layer.side(kTile)), part, &sums) && threadIdx.x == 0)
    decide(p, layer, control, 0, false, sums);
}

template <class A>
__device__ __forceinline__ void start_tile(const Layer& layer, const Control& control, Tile tile) {
  VG_SHARED(A, held, [kTile][kTile + 1]);
  A* matrix = layer.buffer<A>(kGram);  // (m, m)
  const A shrink = A(control.shrink), scale = A(2 / control.size);
  store_tile(matrix, layer.m(), tile, held, [&](int row, int column, A) {
    const A value = matrix[size_t(row) * layer.m() + column] * shrink;
    return (row == column ? value - 1 : value) * scale;
  });
}

// A 2 / size in the place of G. Block: one tile of one layer. Grid: all tiles.
__global__ void __launch_bounds__(kThreads, 4) start(Problem p) {
  const Place place = place_of(p, &Layer::first_tile);
  const Layer& layer = p.layers[place.layer];
  Control& control = p.controls[place.layer];
  if (control.phase != Phase::outside || (*p.any_nonfinite && !p.skip_nonfinite)) return;
  const Tile tile = tile_of(place.index);
  if (control.in_double)
    start_tile<double>(layer, control, tile);
  else
    start_tile<float>(layer, control, tile);
  if (is_last(p, place, 0, tiles_of(layer.side(kTile)), make_double2(0, 0), nullptr) && threadIdx.x == 0)
    control.phase = Phase::projecting;
}

Product square_of(int from, int to, double less = 0) { return {from, from, kNone, to, 0, 1, 0, -less, false}; }

}  // namespace

void certify(const Problem& p, bool in_double, int squarings, void* stream) {
  VG_LAUNCH(sum_gram, dim3(unsigned(p.tiles)), dim3(kThreads), 0, stream, p, in_double);
  for (int k = 1; k <= squarings; k++) {
    const Product square = square_of(power_buffer(k - 1), power_buffer(k));
    const Step step{Kind::square, k, true, square, {}, in_double, k == squarings};
    VG_LAUNCH(multiply, dim3(unsigned(p.tiles)), dim3(kThreads), 0, stream, p, step);
  }
}

void project(const Problem& p, int sign_steps, void* stream) {
  const auto run = [&](const Step& step, unsigned products = 1) {
    VG_LAUNCH(multiply, dim3(unsigned(p.tiles), products), dim3(kThreads), 0, stream, p, step);
  };
  VG_LAUNCH(start, dim3(unsigned(p.tiles)), dim3(kThreads), 0, stream, p);
  for (int i = kSvcSignSteps - sign_steps; i < kSvcSignSteps; i++) {
    const SvcSignRow& row = kSvcSignRows[i];
    const int from = sign_buffer(i - 1);
    const Product next{from, kSquare, kFourth, sign_buffer(i), row.a, row.b, row.c, 0, false};
    run({Kind::sign, i, false, square_of(from, kSquare, row.t)});
    run({Kind::sign, i, false, square_of(kSquare, kFourth)});
    run({Kind::sign, i, i == kSvcSignSteps - 1, next});
  }
  run({Kind::positive, 0, false, {kGram, kSign, kNone, kNone, 1, 1, 0, 0, false}});
  for (int i = 0; i < kSvcRootSteps; i++) {
    const SvcRootRow& row = kSvcRootRows[i];
    const int rest = rest_buffer(i);
    const auto times = [&](int a, int out) { return Product{a, rest, kRootSquare, out, 1, row.b, row.c, 0, true}; };
    run({Kind::root, i, false, square_of(rest, kRootSquare)});
    run({Kind::root, i, true, times(change_buffer(i), change_buffer_after(i)), times(rest, kHalf)}, 2);
    run({Kind::root, i, false, times(kHalf, change_buffer(i))});
  }
}

}  // namespace svc_cuda
}  // namespace vgkernels
