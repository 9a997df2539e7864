// Decides how a launch runs on one CPU thread: a fiber per CUDA thread, one block at a time (all at once where the
// launch is cooperative), in the configured order.
// What a fiber can ask for (barriers, warp exchanges, atomics) is in cuda_emu_intrinsics.h, CUDA's names in cuda_emu.h.
#pragma once

#include <algorithm>
#include <mutex>
#include <numeric>
#include <random>
#include <tuple>
#include <utility>

#include "cuda_emu_fiber.h"
#include "cuda_emu_launched.h"

namespace emu {

inline void open_barrier_if_full(Block& block) {
  if (block.live == 0 || block.arrived != block.live) return;
  block.arrived = 0;
  block.votes[++block.generation & 1] = 0;
  for (size_t t = 0; t < block.threads; ++t)
    if (block.fibers[t].state == State::at_barrier) block.fibers[t].state = State::ready;
}

// A thread that returns no longer counts at its block's barriers, but lanes that named it in a mask would wait for
// ever, and so would the other blocks of a cooperative launch at theirs.
inline void leave() {
  Block& block = *machine.block;
  Warp& warp = block.warps[current->linear / kWarp];
  for (const Meeting& meeting : warp.meetings)
    if (meeting.arrived && (meeting.mask >> current->lane() & 1))
      refuse(current->name() + " returned, but " + meeting.first->name() + " names it in the mask of " +
             meeting.first->where());
  if (machine.grid) {
    if (machine.grid->arrived)
      refuse(current->name() + " returned, but " + machine.grid->first->name() + " waits for it in " +
             machine.grid->first->where());
    if (!machine.grid->returned) machine.grid->returned = current;
  }
  warp.exited |= 1u << current->lane();
  --block.live;
  current->state = State::done;
  open_barrier_if_full(block);
}

inline void run_thread() {
  observe(&machine.begin_token);
  try {
    machine.body(machine.parameters);
    Hidden hidden;
    leave();
  } catch (const Cancelled&) {
  } catch (...) {
    Hidden hidden;
    machine.failure = std::current_exception();
  }
  Hidden hidden;
  current->state = State::done;
  publish(&machine.end_token);
}

__attribute__((noinline, no_sanitize("thread"))) inline void enter() {
#if EMU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &machine.host_bottom, &machine.host_bytes);
#endif
  run_thread();
  switch_to_host();
  abort();  // a done fiber is never resumed
}

inline void prepare(Fiber& fiber, Block* block, int linear, const Stack& stack) {
  const unsigned t = unsigned(linear);
  fiber = Fiber{};
  fiber.block = block;
  fiber.linear = linear;
  fiber.index = uint3{t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
  fiber.stack = &stack;
  void** top = reinterpret_cast<void**>(stack.bottom + kStackBytes) - 2;  // keeps the ABI's alignment after `ret`
  top[0] = reinterpret_cast<void*>(&enter);
  top[1] = nullptr;
  fiber.stack_pointer = top - 6;  // six registers of any value
}

inline std::string deadlock() {
  std::string text = "divergent synchronisation:";
  int told = 0;
  for (const Fiber& fiber : machine.fibers) {
    if (fiber.state == State::done || ++told > 4) continue;
    text += " " + fiber.name() + " waits in " + fiber.where() + ";";
  }
  return text + " " + std::to_string(told) + " of " + std::to_string(machine.fibers.size()) + " threads wait";
}

template <class T>
void arrange(std::vector<T>& items, std::mt19937& random) {
  if (config.order == Order::random) std::shuffle(items.begin(), items.end(), random);
}

// Fibers [begin, end): a warp (greedy) or a thread. It runs while it can.
struct Group {
  size_t begin, end;
};

// Lets each group run once; true if one could.
inline bool run_round(std::vector<Group>& groups, std::mt19937& random) {
  bool progress = false;
  arrange(groups, random);
  for (const Group& group : groups) {
    for (bool again = true; again;) {
      again = false;
      for (size_t i = group.begin; i < group.end; ++i) {
        Fiber& fiber = machine.fibers[config.order == Order::reverse ? group.begin + group.end - 1 - i : i];
        if (!fiber.runnable()) continue;
        again = progress = true;
        resume(fiber);
        if (machine.failure) return false;
      }
    }
  }
  return progress;
}

// Runs until every thread has returned or one has failed. A crowd runs as far as it can before the next one does: a
// block where warps are greedy, else all that are resident.
inline void run_crowds(std::mt19937& random) {
  std::vector<std::vector<Group>> crowds;
  for (const auto& block : machine.blocks) {
    const size_t width = config.warp_greedy ? kWarp : 1, first = size_t(block->fibers - machine.fibers.data());
    if (config.warp_greedy || crowds.empty()) crowds.emplace_back();
    for (size_t t = 0; t < block->threads; t += width)
      crowds.back().push_back({first + t, first + std::min(t + width, block->threads)});
  }
  if (config.order == Order::reverse) {
    std::reverse(crowds.begin(), crowds.end());
    for (auto& groups : crowds) std::reverse(groups.begin(), groups.end());
  }
  const auto live = [](const std::unique_ptr<Block>& block) { return block->live > 0; };
  while (std::any_of(machine.blocks.begin(), machine.blocks.end(), live)) {
    bool progress = false;
    arrange(crowds, random);
    for (auto& groups : crowds)
      while (run_round(groups, random)) progress = true;
    if (machine.failure) return;
    if (!progress) refuse(deadlock());
  }
}

inline void unwind_fibers() {
  machine.cancelled = true;
  for (Fiber& fiber : machine.fibers)
    if (fiber.state != State::done && fiber.state != State::fresh) resume(fiber);
  machine.cancelled = false;
}

// Runs blocks [begin, end) together, on the stacks of the fiber set `set` and the ones after it.
inline void run_blocks(const uint64_t* begin, const uint64_t* end, size_t set, size_t dynamic_bytes,
                       std::mt19937& random) {
  const size_t threads = size_t(blockDim.x) * blockDim.y * blockDim.z;
  machine.fibers.resize(threads * size_t(end - begin));
  for (const uint64_t* b = begin; b < end; ++b) {
    machine.blocks.push_back(std::make_unique<Block>());
    Block& block = *machine.blocks.back();
    const size_t first = threads * size_t(b - begin);
    block.index =
        uint3{unsigned(*b % gridDim.x), unsigned(*b / gridDim.x % gridDim.y), unsigned(*b / gridDim.x / gridDim.y)};
    block.linear = *b;
    block.fibers = &machine.fibers[first];
    block.threads = threads;
    block.live = unsigned(threads);
    block.warps.resize((threads + kWarp - 1) / kWarp);
    block.dynamic_bytes = dynamic_bytes;
    if (dynamic_bytes) block.dynamic = poisoned(dynamic_bytes);
    for (size_t t = 0; t < threads; ++t) {
      prepare(block.fibers[t], &block, int(t), machine.stacks[set * threads + first + t]);
      block.warps[t / kWarp].exists |= 1u << t % kWarp;
    }
  }
  try {
    run_crowds(random);
  } catch (...) {
    machine.failure = std::current_exception();
  }
  if (machine.failure) unwind_fibers();
  machine.blocks.clear();
  if (machine.failure) {
    machine.grid.reset();
    std::rethrow_exception(std::exchange(machine.failure, nullptr));
  }
}

inline void check_limits(const void* kernel, dim3 grid, dim3 block, size_t dynamic_bytes) {
  const auto text = [](dim3 d) {
    return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
  };
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64)
    throw std::runtime_error("emu: invalid block " + text(block) + ": 1 to 1024 threads, z up to 64");
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("emu: invalid grid " + text(grid) + ": at least 1, x up to 2^31 - 1, y and z up to 65535");
  const auto raised = machine.shared_limit.find(kernel);
  const size_t limit = raised == machine.shared_limit.end() ? kStaticShared : raised->second;
  if (dynamic_bytes > limit)
    throw std::runtime_error("emu: " + std::to_string(dynamic_bytes) + " bytes of dynamic shared memory, limit " +
                             std::to_string(limit) + " (cudaFuncSetAttribute raises it to at most 227 KiB)");
}

inline void run_grid(const void* kernel, dim3 grid, dim3 block, size_t dynamic_bytes, Body body, const void* parameters,
                     bool cooperative) {
  static std::mutex one_launch_at_a_time;
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  Hidden hidden;
  check_limits(kernel, grid, block, dynamic_bytes);
  std::vector<uint64_t> blocks(uint64_t(grid.x) * grid.y * grid.z);
  if (cooperative && blocks.size() > config.resident)
    throw std::runtime_error("emu: a cooperative launch of " + std::to_string(blocks.size()) + " blocks, of which " +
                             std::to_string(config.resident) + " can be resident");
  ++config.launches;
  note_launch(kernel);
  gridDim = grid;
  blockDim = block;
  machine.body = body;
  machine.parameters = parameters;
  const size_t threads = size_t(block.x) * block.y * block.z;
  while (machine.stacks.size() < threads * (cooperative ? blocks.size() : kFiberSets)) machine.stacks.emplace_back();
#if EMU_TSAN
  machine.host_tsan = __tsan_get_current_fiber();
#endif
  std::iota(blocks.begin(), blocks.end(), uint64_t(0));
  std::mt19937 random(config.seed);
  publish(&machine.begin_token);
  if (cooperative) {
    machine.grid = std::make_unique<Grid>();
    machine.grid->blocks = unsigned(blocks.size());
    machine.grid->threads = unsigned(blocks.size() * threads);
    run_blocks(blocks.data(), blocks.data() + blocks.size(), 0, dynamic_bytes, random);
    machine.grid.reset();
  } else {
    if (config.order == Order::reverse) std::reverse(blocks.begin(), blocks.end());
    arrange(blocks, random);
    for (size_t i = 0; i < blocks.size(); ++i)
      run_blocks(&blocks[i], &blocks[i] + 1, i % kFiberSets, dynamic_bytes, random);
  }
  observe(&machine.end_token);
}

// <<<grid, block, shared_bytes, stream>>>: arguments are converted once, every thread copies its parameters from them.
template <bool kCooperative = false, class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* /*stream*/,
            Arguments&&... arguments) {
  using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  const Call call(kernel, std::tuple<Parameters...>(static_cast<Parameters>(arguments)...));
  const Body body = [](const void* p) {
    std::apply(static_cast<const Call*>(p)->first, static_cast<const Call*>(p)->second);
  };
  run_grid(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, body, &call, kCooperative);
}

}  // namespace emu
