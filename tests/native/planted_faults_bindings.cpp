// Decides how tests/test_emulator.py calls planted_faults.cu: numpy arrays in, numpy arrays out, the fault by name.
// What the kernels compute and where they fail is decided in planted_faults.cu.
#include <algorithm>
#include <array>
#include <vector>

#include "emulator_bindings.h"
#include "planted_faults.h"

namespace py = pybind11;
namespace planted = vgkernels::planted;
using planted::Fault;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Ints = py::array_t<int, py::array::c_style | py::array::forcecast>;

namespace {

template <class T>
py::array_t<T> zeros(std::vector<py::ssize_t> shape) {
  py::array_t<T> array(shape);
  std::fill_n(array.mutable_data(), array.size(), T(0));
  return array;
}

Floats matmul(const Floats& a, const Floats& b, Fault fault) {
  Floats c = zeros<float>({a.shape(0), b.shape(1)});
  planted::matmul(a.data(), b.data(), c.mutable_data(), int(a.shape(0)), int(b.shape(1)), int(a.shape(1)), fault);
  return c;
}

Floats row_sums(const Floats& x, Fault fault) {
  Floats sums = zeros<float>({x.shape(0)});
  planted::row_sums(x.data(), sums.mutable_data(), int(x.shape(0)), int(x.shape(1)), fault);
  return sums;
}

py::tuple scatter_add(const Floats& values, const Ints& index, int size, Fault fault) {
  Floats out = zeros<float>({size});
  Ints blocks = zeros<int>({1});
  planted::scatter_add(values.data(), index.data(), out.mutable_data(), blocks.mutable_data(), int(values.size()),
                       fault);
  return py::make_tuple(out, blocks);
}

Floats smooth(const Floats& x, Fault fault) {
  Floats out = zeros<float>({64});
  planted::smooth(x.data(), out.mutable_data(), int(x.shape(0)), fault);
  return out;
}

void empty_launch(std::array<unsigned, 3> grid, std::array<unsigned, 3> block, unsigned shared_bytes) {
  unsigned g[3] = {grid[0], grid[1], grid[2]}, b[3] = {block[0], block[1], block[2]};
  planted::empty_launch(g, b, shared_bytes);
}

Ints warp_exchanges(const Ints& x) {
  Ints out = zeros<int>({40, 12});
  planted::warp_exchanges(x.data(), out.mutable_data());
  return out;
}

}  // namespace

PYBIND11_MODULE(planted_faults, m) {
  vgkernels::add_emulator(m);
  py::enum_<Fault>(m, "Fault")
      .value("none", Fault::none)
      .value("no_barrier_before_read", Fault::no_barrier_before_read)
      .value("no_barrier_before_write", Fault::no_barrier_before_write)
      .value("no_bound_check", Fault::no_bound_check)
      .value("uninitialised_shared_read", Fault::uninitialised_shared_read)
      .value("shared_overflow", Fault::shared_overflow)
      .value("barrier_in_branch", Fault::barrier_in_branch)
      .value("half_warp_shuffle", Fault::half_warp_shuffle)
      .value("no_atomic", Fault::no_atomic)
      .value("blocks_share_a_word", Fault::blocks_share_a_word)
      .value("wait_one_stage_short", Fault::wait_one_stage_short)
      .value("no_barrier_after_last_read", Fault::no_barrier_after_last_read);
  m.def("matmul", &matmul);
  m.def("row_sums", &row_sums);
  m.def("scatter_add", &scatter_add);
  m.def("smooth", &smooth);
  py::enum_<planted::Misuse>(m, "Misuse")
      .value("outside_own_mask", planted::Misuse::outside_own_mask)
      .value("disagreeing_masks", planted::Misuse::disagreeing_masks)
      .value("lane_has_returned", planted::Misuse::lane_has_returned)
      .value("two_primitives", planted::Misuse::two_primitives)
      .value("warp_and_block", planted::Misuse::warp_and_block);
  m.def("misuse", &planted::misuse);
  m.def("raise_shared_limit", &planted::raise_shared_limit);
  m.def("empty_launch", &empty_launch);
  m.def("warp_exchanges", &warp_exchanges);
}
