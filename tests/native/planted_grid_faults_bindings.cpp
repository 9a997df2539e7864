// Decides how tests/test_emulator_grid.py calls planted_grid_faults.cu: numpy arrays in, numpy arrays out.
// What the kernel computes and where it fails is decided in planted_grid_faults.cu.
#include <vector>

#include "emulator_bindings.h"
#include "planted_grid_faults.h"

namespace py = pybind11;
using vgkernels::planted::GridFault;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

namespace {

// x (blocks, 64) after `rounds` rounds.
Floats relax(const Floats& x, int rounds, GridFault fault) {
  const int blocks = int(x.shape(0));
  std::vector<float> halves(x.data(), x.data() + x.size());
  halves.resize(2 * x.size(), -1e9f);
  std::vector<unsigned> counters(blocks);
  vgkernels::planted::relax(halves.data(), counters.data(), blocks, rounds, fault);
  Floats out({x.shape(0), x.shape(1)});
  std::copy_n(halves.data() + rounds % 2 * x.size(), x.size(), out.mutable_data());
  return out;
}

}  // namespace

PYBIND11_MODULE(planted_grid_faults, m) {
  vgkernels::add_emulator(m);
  py::enum_<GridFault>(m, "GridFault")
      .value("none", GridFault::none)
      .value("no_grid_barrier", GridFault::no_grid_barrier)
      .value("no_block_barrier", GridFault::no_block_barrier)
      .value("block_returns", GridFault::block_returns)
      .value("block_skips_one", GridFault::block_skips_one)
      .value("thread_returns", GridFault::thread_returns)
      .value("two_lines", GridFault::two_lines)
      .value("half_a_block", GridFault::half_a_block)
      .value("counter_in_use", GridFault::counter_in_use)
      .value("two_counters", GridFault::two_counters)
      .value("not_cooperative", GridFault::not_cooperative);
  m.def("relax", &relax);
}
