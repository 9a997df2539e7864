// Decides what running blocks consist of and how one CPU thread switches between their fibers; tells ASan and TSan.
// Which fiber runs when is decided in cuda_emu_sched.h.
#pragma once

#include <sys/mman.h>
#include <vector_types.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_emu_config.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define EMU_ASAN 1
#else
#define EMU_ASAN 0
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define EMU_TSAN 1
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#else
#define EMU_TSAN 0
#endif
#if !defined(__x86_64__)
#error "the emulator switches stacks in x86-64 assembly: port switch_stacks and prepare"
#endif

namespace emu {

constexpr int kWarp = 32;
constexpr size_t kSlotBytes = 24;  // the most that a lane brings to a meeting: the operands of an mma
using Slot = unsigned char[kSlotBytes];
constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 4096;
constexpr size_t kStaticShared = 48 << 10, kOptInShared = 227 << 10;
// Under TSan neighbouring blocks run on different fibers, so that nothing but their own atomics orders them.
constexpr size_t kFiberSets = EMU_TSAN ? 2 : 1;

// TSan judges the kernel's own accesses: those of the emulator happen inside a Hidden, the order it makes is told by
// publish (what I did so far) and observe (I see what was published at this token).
struct Hidden {
#if EMU_TSAN
  Hidden() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__), AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Hidden() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__), AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
#else
  Hidden() {}
#endif
  Hidden(const Hidden&) = delete;
};
#if EMU_TSAN
inline void publish(char* token) { __tsan_release(token); }
inline void observe(char* token) { __tsan_acquire(token); }
#else
inline void publish(char*) {}
inline void observe(char*) {}
#endif

// Where the kernel called a primitive; as a default argument it names the caller's line.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  bool operator==(const Site& other) const { return line == other.line && !strcmp(file, other.file); }
};

struct Copy {  // one cp.async that has not happened yet
  void* to;
  const void* from;
  unsigned bytes, size, group;  // `size` bytes are written, those from `bytes` on are zero
};

struct Stack {  // kept for the process: a stack, and the identity that TSan knows its user by
  char* bottom;
  void* tsan = nullptr;
  Stack() {
    void* memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, kGuardBytes, PROT_NONE);
    bottom = static_cast<char*>(memory) + kGuardBytes;
#if EMU_TSAN
    tsan = __tsan_create_fiber(0);
#endif
  }
};

enum class State : char { fresh, ready, at_barrier, at_grid, at_warp, done };

struct Block;

struct Fiber {
  void* stack_pointer;
  const Stack* stack;
  Block* block;
  void* fake_stack;  // ASan's
  uint3 index;
  int linear;
  State state;
  const char* primitive;  // what it waits in, where, and with whom
  Site site;
  unsigned mask;
  std::vector<Copy> copies;
  unsigned groups;  // committed

  int lane() const { return linear % kWarp; }
  bool runnable() const { return state == State::fresh || state == State::ready; }
  std::string name() const;
  std::string where() const { return std::string(primitive) + " at " + site.file + ":" + std::to_string(site.line); }
};

// Lanes that wait for each other with one mask. Values lie in two sets, so that a fast lane's next ones do not hurry.
struct Meeting {
  unsigned mask, arrived = 0, generation = 0;
  const Fiber* first = nullptr;
  alignas(16) Slot slots[2][kWarp];
  char token[2];
};

struct Warp {
  unsigned exists = 0, exited = 0;  // lanes
  std::deque<Meeting> meetings;     // one for each mask that was used; a deque keeps their addresses
};

struct Release {
  void operator()(void* memory) const { free(memory); }
};
using Memory = std::unique_ptr<void, Release>;

// Every variable is a heap block of its own, with ASan's red zones at its exact ends.
inline Memory poisoned(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, bytes)) throw std::bad_alloc();
  memset(memory, config.poison, bytes);
  return Memory(memory);
}

struct Block {  // made anew for each block: freeing the tokens makes TSan forget how they ordered the block before
  uint3 index;
  uint64_t linear;  // in the grid
  Fiber* fibers;
  size_t threads;
  std::vector<Warp> warps;
  std::vector<std::pair<const void*, Memory>> variables;
  Memory dynamic;
  size_t static_bytes = 0, dynamic_bytes = 0;
  unsigned live = 0, arrived = 0, generation = 0;
  int votes[2] = {0, 0};
  char token[2];
  const Fiber* first = nullptr;  // the first to arrive at the barrier that is filling
};

// What the blocks of a cooperative launch share; they are resident together.
struct Grid {
  unsigned blocks, threads;  // all that must come to its barrier
  unsigned arrived = 0, generation = 0;
  const Fiber* first = nullptr;     // the first to arrive at the barrier that is filling
  const Fiber* returned = nullptr;  // the first that has
  char token[2];
};

using Body = void (*)(const void* parameters);

struct Machine {
  std::deque<Stack> stacks;
  std::vector<Fiber> fibers;                   // of the resident blocks, one block after the other
  std::vector<std::unique_ptr<Block>> blocks;  // resident: one, or all of a cooperative launch
  Block* block = nullptr;                      // that the current fiber belongs to
  std::unique_ptr<Grid> grid;                  // null: the launch is not cooperative
  Body body = nullptr;                         // calls the kernel with the launch's parameters
  const void* parameters = nullptr;
  std::exception_ptr failure;
  bool cancelled = false;
  std::map<const void*, size_t> shared_limit;  // raised by cudaFuncSetAttribute
  void* host_stack_pointer = nullptr;
  void* host_tsan = nullptr;
  void* host_fake_stack = nullptr;
  const void* host_bottom = nullptr;
  size_t host_bytes = 0;
  char begin_token, end_token, fence_token;
};
inline Machine machine;
inline Fiber* current = nullptr;
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

inline std::string Fiber::name() const {
  return "thread " + std::to_string(linear) + (machine.grid ? " of block " + std::to_string(block->linear) : "");
}

struct Cancelled {};  // thrown in the fibers that a failed launch leaves behind, so that they unwind

[[noreturn]] inline void refuse(const std::string& what) {
  throw std::runtime_error("emu: " + what + ", in block (" + std::to_string(blockIdx.x) + ", " +
                           std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + ")");
}

// Saves the callee-saved registers and the stack pointer, takes the other's.
__attribute__((naked, noinline)) inline void switch_stacks(void** /*save*/, void* /*next*/) {
  asm volatile(
      "pushq %%rbp\n\tpushq %%rbx\n\tpushq %%r12\n\tpushq %%r13\n\tpushq %%r14\n\tpushq %%r15\n\t"
      "movq %%rsp, (%%rdi)\n\tmovq %%rsi, %%rsp\n\t"
      "popq %%r15\n\tpopq %%r14\n\tpopq %%r13\n\tpopq %%r12\n\tpopq %%rbx\n\tpopq %%rbp\n\tret"
      :
      :
      : "memory");
}

// The three functions around a switch are not instrumented: TSan's shadow call stack belongs to one fiber.
__attribute__((noinline, no_sanitize("thread"))) inline void switch_to_host() {
  Fiber* const me = current;
#if EMU_ASAN
  __sanitizer_start_switch_fiber(me->state == State::done ? nullptr : &me->fake_stack, machine.host_bottom,
                                 machine.host_bytes);
#endif
#if EMU_TSAN
  __tsan_switch_to_fiber(machine.host_tsan, __tsan_switch_to_fiber_no_sync);
#endif
  switch_stacks(&me->stack_pointer, machine.host_stack_pointer);
#if EMU_ASAN
  __sanitizer_finish_switch_fiber(me->fake_stack, &machine.host_bottom, &machine.host_bytes);
#endif
}

__attribute__((noinline, no_sanitize("thread"))) inline void resume(Fiber& fiber) {
  current = &fiber;
  machine.block = fiber.block;
  blockIdx = fiber.block->index;
  threadIdx = fiber.index;
  if (fiber.state == State::fresh) fiber.state = State::ready;
#if EMU_ASAN
  __sanitizer_start_switch_fiber(&machine.host_fake_stack, fiber.stack->bottom, kStackBytes);
#endif
#if EMU_TSAN
  __tsan_switch_to_fiber(fiber.stack->tsan, __tsan_switch_to_fiber_no_sync);
#endif
  switch_stacks(&machine.host_stack_pointer, fiber.stack_pointer);
#if EMU_ASAN
  __sanitizer_finish_switch_fiber(machine.host_fake_stack, nullptr, nullptr);
#endif
}

// Waits in a primitive until another fiber (or the end of a failed launch) makes this one run again.
inline void suspend() {
  switch_to_host();
  if (machine.cancelled) throw Cancelled{};
}

}  // namespace emu
