// Decides what the barrier of a whole grid does, and what misuse of it is refused: prim::grid_sync is this under g++.
// Which thread of which block goes on after it is decided in cuda_emu_sched.h.
#pragma once

#include "cuda_emu_intrinsics.h"

namespace emu {

// All threads of all blocks meet at one line; none may have returned. `counter` counts blocks as on the device, where
// no block would wait, or all for ever, if it did not begin at 0; `round` is this thread's count of its barriers.
inline void grid_barrier(unsigned* counter, unsigned* round, Site site) {
  barrier("grid_sync", false, site);
  Hidden hidden;
  if (!machine.grid)
    refuse("grid_sync at " + std::string(site.file) + ":" + std::to_string(site.line) +
           " in a launch that is not cooperative");
  Grid& grid = *machine.grid;
  const unsigned parity = grid.generation & 1;
  current->primitive = "grid_sync";
  current->site = site;
  if (grid.returned)
    refuse(grid.returned->name() + " returned, but " + current->name() + " waits for it in " + current->where());
  if (grid.arrived == 0) grid.first = current;
  if (!(grid.first->site == site))
    refuse("divergent synchronisation: " + grid.first->name() + " waits in " + grid.first->where() + ", " +
           current->name() + " comes to " + current->where());
  if (++*round != grid.generation + 1)
    refuse(current->name() + " counts grid_sync " + std::to_string(*round) + " where it is number " +
           std::to_string(grid.generation + 1));
  if (current->linear == 0) ++*counter;
  publish(&grid.token[parity]);
  current->state = State::at_grid;
  if (++grid.arrived == grid.threads) {
    if (*counter != grid.blocks * *round)
      refuse("grid_sync's counter is " + std::to_string(*counter) + " after " + std::to_string(*round) + " rounds of " +
             std::to_string(grid.blocks) + " blocks: it must be 0 before the launch, and the same for all blocks");
    grid.arrived = 0;
    ++grid.generation;
    for (Fiber& fiber : machine.fibers) fiber.state = State::ready;
  } else {
    suspend();
  }
  observe(&grid.token[parity]);
}

}  // namespace emu
