// sliced_wasserstein on CUDA: the list of launches, which depends on shapes alone, and the workspace. A chunk of the
// directions of some entries is projected, sorted, coupled, and its gradients are multiplied back, before the next one.
// Nothing waits; all sums have one order, those over chunks too: a chunk adds to what the chunk before has written.
#include "sliced_wasserstein/sliced_wasserstein_cuda.h"

#include "common/workspace.h"
#include "sliced_wasserstein/sliced_wasserstein_product_cuda.h"

namespace vgkernels {
namespace swd_cuda {
namespace {

constexpr int64_t kMostChunks = 64;  // that add up to one gradient in float32, rounding each time

int64_t pitch_of(int64_t n) { return divide_up(n, 4) * 4; }  // so that each row begins at a multiple of 16 bytes

// How a call is cut: either all directions of some entries, or some directions of one entry.
struct Cut {
  int64_t entries, directions;
  int project_pieces, x_pieces, y_pieces;  // of the sums in products with few tiles
  int64_t part_tiles = 0;                  // of one entry, whose sums wait in pieces

  Cut(const SlicedWassersteinParams& p, DType dtype) {
    const int64_t element = dtype == DType::float64 ? 8 : 4;
    const int64_t row = (pitch_of(p.n) + pitch_of(p.m)) * element;
    const int64_t rows = std::max<int64_t>(1, policy.chunk_bytes / row);
    directions = std::max(std::min(p.directions, rows), divide_up(p.directions, kMostChunks));
    if (directions < p.directions && directions > kTile) directions = directions / kTile * kTile;

    const int64_t tiles = tiles_of(p.directions, p.n) + tiles_of(p.directions, p.m);
    const int64_t gradient_tiles = tiles_of(p.directions, p.dim);
    project_pieces = p.projections ? pieces_of(tiles, p.dim) : 1;
    x_pieces = p.grad_projections ? pieces_of(gradient_tiles, p.n) : 1;
    y_pieces = p.grad_projections ? pieces_of(gradient_tiles, p.m) : 1;
    if (project_pieces > 1) part_tiles = tiles * project_pieces;
    if (x_pieces > 1) part_tiles = std::max(part_tiles, gradient_tiles * x_pieces);
    if (y_pieces > 1) part_tiles = std::max(part_tiles, gradient_tiles * y_pieces);

    entries = std::min(p.batch, rows / p.directions);
    if (part_tiles) entries = std::min(entries, policy.chunk_bytes / (part_tiles * kTile * kTile * element));
    entries = directions < p.directions ? 1 : std::max<int64_t>(1, entries);
  }
  int64_t rows() const { return entries * directions; }
};

template <class T, bool kIndexed>
struct Workspace {
  double* distances;  // (B, L)
  T* parts;           // what sums in pieces need
  Rows<T, kIndexed> rows;
  int64_t bytes;
  Workspace(const SlicedWassersteinParams& p, const Cut& cut, void* memory) {
    Pieces pieces{static_cast<char*>(memory)};
    const bool merges = std::max(p.n, p.m) > sorted_by_a_block<T, kIndexed>();
    const auto side = [&](int64_t n) {
      const int64_t pitch = pitch_of(n), count = cut.rows() * pitch;
      T* values = pieces.take<T>(count);
      auto* keys = pieces.take<Key<T, kIndexed>>(count);
      return Side<T, kIndexed>{values, keys, merges ? pieces.take<Key<T, kIndexed>>(count) : nullptr, int(n), pitch};
    };
    distances = pieces.take<double>(p.batch * p.directions);
    parts = pieces.take<T>(cut.entries * cut.part_tiles * kTile * kTile);
    rows.x = side(p.n);
    rows.y = side(p.m);
    rows.count = 0;
    bytes = pieces.used;
  }
};

// One chunk: where its matrices are. All products of a call are of these operands.
template <class T, bool kIndexed>
struct Chunk {
  const SlicedWassersteinParams& p;
  const Cut& cut;
  Rows<T, kIndexed> rows;
  T* parts;
  int64_t first_entry, first_direction, entries, directions;
  void* stream;

  const T* samples(bool of_y) const { return static_cast<const T*>(of_y ? p.y : p.x); }
  T* gradient(bool of_y) const { return static_cast<T*>(of_y ? p.grad_y : p.grad_x); }
  const Side<T, kIndexed>& side(bool of_y) const { return of_y ? rows.y : rows.x; }
  int64_t row_entry(bool of_y) const { return directions * side(of_y).pitch; }  // from one entry's rows to the next's

  Operand<T> theta(bool transposed) const {  // (directions, D)
    const T* data = static_cast<const T*>(p.projections) + first_direction * p.dim;
    return {data,        p.directions * p.dim, transposed ? 1 : p.dim, transposed ? p.dim : 1,
            first_entry, p.batch / p.groups};
  }
  Operand<T> sample_matrix(bool of_y, bool transposed) const {  // (N, D)
    return {samples(of_y), side(of_y).n * p.dim, transposed ? 1 : p.dim, transposed ? p.dim : 1, first_entry, 1};
  }
  Operand<T> row_matrix(bool of_y, bool transposed) const {  // (directions, N)
    const int64_t pitch = side(of_y).pitch;
    return {side(of_y).values, row_entry(of_y), transposed ? 1 : pitch, transposed ? pitch : 1, 0, 1};
  }

  const char* run(const Product<T>* products, int count, int pieces) const {
    return multiply(together(products, count, entries, pieces, parts), stream);
  }

  // The same launch for both sides: equal samples must be projected to equal bits.
  const char* project() const {
    if (p.projections) {
      Product<T> products[2];
      for (const bool of_y : {false, true}) {
        const Side<T, kIndexed>& to = side(of_y);
        products[of_y] = {theta(false), sample_matrix(of_y, false),
                          to.values,    row_entry(of_y),
                          to.pitch,     int(directions),
                          to.n,         int(p.dim),
                          false};
      }
      return run(products, 2, cut.project_pieces);
    }
    for (const bool of_y : {false, true}) {
      const Side<T, kIndexed>& to = side(of_y);
      const int64_t entry = to.n * p.directions;
      const T* from = samples(of_y) + first_entry * entry + first_direction;  // (entries, N, L)
      if (const char* error = transpose(from, entry, p.directions, to.values, row_entry(of_y), to.pitch, to.n,
                                        int(directions), entries, stream))
        return error;
    }
    return nullptr;
  }

  const char* sample_gradients() const {
    Product<T> products[2];
    int count = 0;
    for (const bool of_y : {false, true}) {
      if (!gradient(of_y)) continue;
      const Side<T, kIndexed>& from = side(of_y);
      T* out = gradient(of_y) + first_entry * from.n * p.dim;  // (entries, N, D), where D == L without projections
      if (p.projections) {
        products[count++] = {row_matrix(of_y, true), theta(true),        out, from.n * p.dim, p.dim, from.n, int(p.dim),
                             int(directions),        first_direction > 0};
      } else if (const char* error = transpose<T>(from.values, row_entry(of_y), from.pitch, out + first_direction,
                                                  from.n * p.dim, p.dim, int(directions), from.n, entries, stream)) {
        return error;
      }
    }
    return count ? run(products, count, 1) : nullptr;
  }

  const char* projection_gradients() const {
    if (!p.grad_projections) return nullptr;
    T* out = static_cast<T*>(p.grad_projections) + (first_entry * p.directions + first_direction) * p.dim;
    for (const bool of_y : {false, true}) {  // y adds to x
      const Product<T> product{row_matrix(of_y, false),
                               sample_matrix(of_y, true),
                               out,
                               p.directions * p.dim,
                               p.dim,
                               int(directions),
                               int(p.dim),
                               side(of_y).n,
                               of_y};
      if (const char* error = run(&product, 1, of_y ? cut.y_pieces : cut.x_pieces)) return error;
    }
    return nullptr;
  }
};

template <class T, bool kIndexed>
const char* all_chunks(const SlicedWassersteinParams& p, const Cut& cut, void* memory, void* stream) {
  const Workspace<T, kIndexed> space(p, cut, memory);
  const bool rows_wanted = p.grad_projections;
  Coupling coupling{p.p, p.directions, 0, p.grad_x || rows_wanted, p.grad_y || rows_wanted};
  for (int64_t entry = 0; entry < p.batch; entry += cut.entries)
    for (int64_t direction = 0; direction < p.directions; direction += cut.directions) {
      Chunk<T, kIndexed> chunk{p,
                               cut,
                               space.rows,
                               space.parts,
                               entry,
                               direction,
                               std::min(cut.entries, p.batch - entry),
                               std::min(cut.directions, p.directions - direction),
                               stream};
      chunk.rows.count = chunk.entries * chunk.directions;
      coupling.directions = chunk.directions;
      double* distances = space.distances + entry * p.directions + direction;  // (entries, L)
      if (const char* error = chunk.project()) return error;
      if (const char* error = sort_rows(&chunk.rows, stream)) return error;
      if (const char* error = couple_rows(chunk.rows, coupling, distances, stream)) return error;
      if (const char* error = chunk.sample_gradients()) return error;
      if (const char* error = chunk.projection_gradients()) return error;
    }
  return mean_distances(space.distances, p.batch, p.directions, static_cast<T*>(p.value), stream);
}

// f(element, indexed) with values of the element type, and of whether samples' indices are sorted too: for gradients.
template <class F>
auto with_kind(const SlicedWassersteinParams& p, DType dtype, F f) {
  const bool indexed = p.grad_x || p.grad_y || p.grad_projections;
  if (dtype == DType::float64) return indexed ? f(double(), std::true_type()) : f(double(), std::false_type());
  return indexed ? f(float(), std::true_type()) : f(float(), std::false_type());
}

}  // namespace
}  // namespace swd_cuda

int64_t sliced_wasserstein_workspace_cuda(const SlicedWassersteinParams& p, DType dtype) {
  using namespace swd_cuda;
  return with_kind(p, dtype, [&](auto element, auto indexed) {
    return Workspace<decltype(element), decltype(indexed)::value>(p, Cut(p, dtype), nullptr).bytes;
  });
}

const char* sliced_wasserstein_cuda(const SlicedWassersteinParams& p, DType dtype, void* workspace, void* stream) {
  using namespace swd_cuda;
  if (p.batch == 0) return nullptr;
  if (p.x_weights || p.y_weights) return "sliced_wasserstein: no weights in CUDA kernels";
  if (std::max({p.batch, p.n, p.m, p.dim, p.directions}) > (int64_t(1) << 31) - 512)
    return "sliced_wasserstein: CUDA kernels need every size below 2^31";
  return with_kind(p, dtype, [&](auto element, auto indexed) {
    return all_chunks<decltype(element), decltype(indexed)::value>(p, Cut(p, dtype), workspace, stream);
  });
}

}  // namespace vgkernels
