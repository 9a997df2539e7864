// Decides what barriers, warp exchanges, atomics, shared memory and cp.async do, and what misuse of them is refused.
// Their CUDA names are given in cuda_emu.h; which thread goes on after a wait is decided in cuda_emu_sched.h.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda_emu_sched.h"

namespace emu {

// Returns the number of true votes. Threads that have returned do not count; all others must meet at one line.
inline int barrier(const char* primitive, bool vote, Site site) {
  Hidden hidden;
  Block& block = *machine.block;
  const unsigned parity = block.generation & 1;
  current->primitive = primitive;
  current->site = site;
  if (block.arrived == 0) block.first = current;
  if (!(block.first->site == site) || strcmp(block.first->primitive, primitive))
    refuse("divergent synchronisation: " + block.first->name() + " waits in " + block.first->where() + ", " +
           current->name() + " comes to " + current->where());
  publish(&block.token[parity]);
  block.votes[parity] += vote;
  ++block.arrived;
  current->state = State::at_barrier;
  open_barrier_if_full(block);
  if (current->state == State::at_barrier) suspend();
  observe(&block.token[parity]);
  return block.votes[parity];
}

// One shared variable per declaration and block; `declaration` is the address of a static at the place.
template <class T>
T& shared_variable(const void* declaration) {
  Hidden hidden;
  Block& block = *machine.block;
  for (const auto& variable : block.variables)
    if (variable.first == declaration) return *static_cast<T*>(variable.second.get());
  block.static_bytes += sizeof(T);
  if (block.static_bytes > kStaticShared) refuse("more than 48 KiB of static shared memory");
  if (block.static_bytes + block.dynamic_bytes > kOptInShared) refuse("more than 227 KiB of shared memory");
  block.variables.emplace_back(declaration, poisoned(sizeof(T)));
  return *static_cast<T*>(block.variables.back().second.get());
}

template <class T>
T* dynamic_shared() {
  Hidden hidden;
  return static_cast<T*>(machine.block->dynamic.get());
}

inline Meeting& meeting_of(Warp& warp, unsigned mask) {
  for (Meeting& meeting : warp.meetings)
    if (meeting.mask == mask) return meeting;
  warp.meetings.emplace_back();
  warp.meetings.back().mask = mask;
  return warp.meetings.back();
}

// Leaves this lane's value and waits for the lanes of the mask; returns the set of their values. Only __syncwarp orders
// memory. Lanes that the block does not have are not waited for; lanes that have returned must not be named.
inline const Slot* meet(const char* primitive, unsigned mask, const void* value, size_t bytes, bool orders, Site site) {
  Warp& warp = machine.block->warps[current->linear / kWarp];
  const unsigned me = 1u << current->lane(), lanes = mask & warp.exists;
  current->primitive = primitive;
  current->site = site;
  if (!(mask & me)) refuse(current->name() + " is not in its own mask in " + current->where());
  if (mask & warp.exited) refuse(current->name() + " names a lane that has returned in " + current->where());
  for (const Meeting& other : warp.meetings)
    if (other.mask != mask && (other.mask & me) && (other.arrived & mask))
      refuse("disagreeing masks: " + other.first->name() + " waits in " + other.first->where() + ", " +
             current->name() + " comes to " + current->where());
  Meeting& meeting = meeting_of(warp, mask);
  if (meeting.arrived == 0) meeting.first = current;
  if (strcmp(meeting.first->primitive, primitive))
    refuse("divergent synchronisation: " + meeting.first->name() + " waits in " + meeting.first->where() + ", " +
           current->name() + " comes to " + current->where());
  const unsigned parity = meeting.generation & 1;
  if (bytes) memcpy(meeting.slots[parity][current->lane()], value, bytes);  // __syncwarp brings no value
  if (orders) publish(&meeting.token[parity]);
  meeting.arrived |= me;
  if (meeting.arrived != lanes) {
    current->state = State::at_warp;
    suspend();
  } else {
    meeting.arrived = 0;
    ++meeting.generation;
    const int first = current->linear - current->lane();
    for (int lane = 0; lane < kWarp; ++lane)
      if ((lanes & ~me) >> lane & 1) machine.block->fibers[first + lane].state = State::ready;
  }
  if (orders) observe(&meeting.token[parity]);
  return meeting.slots[parity];
}

inline void sync_warp(unsigned mask, Site site) {
  Hidden hidden;
  meet("__syncwarp", mask, nullptr, 0, true, site);
}

inline unsigned ballot(const char* primitive, unsigned mask, bool predicate, Site site) {
  Hidden hidden;
  const unsigned char mine = predicate;
  const auto values = meet(primitive, mask, &mine, 1, false, site);
  const unsigned lanes = mask & machine.block->warps[current->linear / kWarp].exists;
  unsigned result = 0;
  for (int lane = 0; lane < kWarp; ++lane)
    if ((lanes >> lane & 1) && values[lane][0]) result |= 1u << lane;
  return result;
}

// `from` is given this lane and the bounds of its segment, and names the source lane.
template <class T, class From>
T shuffle(const char* primitive, unsigned mask, const T& value, int width, Site site, From from) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 16, "a shuffle moves at most 16 plain bytes");
  Hidden hidden;
  if (width < 1 || width > kWarp || (width & (width - 1))) refuse("a shuffle's width must be a power of 2 up to 32");
  const auto values = meet(primitive, mask, &value, sizeof(T), false, site);
  const int lane = current->lane(), begin = lane & ~(width - 1);
  const int source = from(lane, begin, begin + width);
  const unsigned lanes = mask & machine.block->warps[current->linear / kWarp].exists;
  T result;
  if (lanes >> source & 1)
    memcpy(&result, values[source], sizeof(T));
  else
    memset(static_cast<void*>(&result), config.poison, sizeof(T));  // undefined on the device
  return result;
}

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "the types differ in size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <class T>
struct Exactly {  // the pointer alone decides the type, as in CUDA's overloads
  using type = T;
};

// A float's leading 11 bits, which are what a tensor core sees of it in tf32.
inline double as_tf32(uint32_t bits) { return double(same_bits<float>(bits & 0xFFFFE000u)); }

inline float rounded_to_zero(double value) {
  const float nearest = float(value);
  const bool grew = std::abs(double(nearest)) > std::abs(value) && !std::isinf(nearest);
  return grew ? std::nextafterf(nearest, 0.0f) : nearest;
}

// mma.m16n8k8 in tf32 with fp32 sums: the pessimistic model of its adder, which cuts what does not fit into a float off
// after each instruction. Real ones keep some bits more, but need not round to nearest either.
inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  Hidden hidden;
  uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  static_assert(sizeof(mine) <= kSlotBytes, "a lane brings a and b");
  const auto values = meet("mma", 0xFFFFFFFFu, mine, sizeof(mine), false, site);
  const auto word = [&](int lane, int i) {
    uint32_t bits;
    memcpy(&bits, values[lane] + 4 * i, 4);
    return as_tf32(bits);
  };
  const int lane = current->lane();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    double sum = double(d[i]);
    for (int k = 0; k < 8; ++k)
      sum += word(row % 8 * 4 + k % 4, row / 8 + 2 * (k / 4)) * word(column * 4 + k % 4, 4 + k / 4);
    d[i] = rounded_to_zero(sum);
  }
}

// A relaxed read-modify-write, as CUDA's are: it orders nothing else. Returns the old value.
template <class T, class Change>
T atomically(T* address, Change change) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA's atomics are of 4 or 8 bytes");
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  Bits* const word = reinterpret_cast<Bits*>(address);
  Bits seen = __atomic_load_n(word, __ATOMIC_RELAXED), wanted;
  T before;
  do {
    memcpy(&before, &seen, sizeof(T));
    const T after = change(before);
    memcpy(&wanted, &after, sizeof(T));
  } while (!__atomic_compare_exchange_n(word, &seen, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

// Orders a thread's accesses against those of any thread that fences later: more than the device promises.
inline void fence() {
  publish(&machine.fence_token);
  observe(&machine.fence_token);
}

inline void require_aligned(const void* address, size_t bytes, const char* primitive) {
  if (reinterpret_cast<uintptr_t>(address) % bytes)
    refuse(current->name() + ": " + primitive + " of an address that is not a multiple of " + std::to_string(bytes));
}

// Copies `bytes` of `size` and fills the rest with zeros; the accesses are visible to the sanitizers.
inline void copy_now(const Copy& copy) {
  memcpy(copy.to, copy.from, copy.bytes);
  memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.size - copy.bytes);
}

inline void copy_async(void* to, const void* from, unsigned size, unsigned bytes) {
  const Copy copy{to, from, bytes, size, current->groups};
  require_aligned(to, size, "cp.async");
  require_aligned(from, size, "cp.async");
  if (config.copy_at_issue) return copy_now(copy);
  Hidden hidden;
  current->copies.push_back(copy);
}

inline void commit_copies() {
  Hidden hidden;
  ++current->groups;
}

// All groups but the latest `pending` have arrived; copies that were not committed are not waited for.
inline void wait_copies(unsigned pending) {
  for (;;) {
    Copy copy;
    {
      Hidden hidden;
      std::vector<Copy>& copies = current->copies;
      if (copies.empty() || copies.front().group + pending >= current->groups) return;
      copy = copies.front();
      copies.erase(copies.begin());
    }
    copy_now(copy);
  }
}

// mma.m16n8k16 of numbers of 16 bits with fp32 sums, by the same model; `wide` makes a double of one's bits.
template <class Wide>
void multiply_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Wide wide, Site site) {
  Hidden hidden;
  uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const auto values = meet("mma", 0xFFFFFFFFu, mine, sizeof(mine), false, site);
  const auto number = [&](int lane, int word, int half) {
    uint16_t bits;
    memcpy(&bits, values[lane] + 4 * word + 2 * half, 2);
    return wide(bits);
  };
  const int lane = current->lane();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    double sum = double(d[i]);
    for (int k = 0; k < 16; ++k) {
      const int along = k % 8 / 2;
      sum += number(row % 8 * 4 + along, row / 8 + 2 * (k / 8), k % 2) * number(column * 4 + along, 4 + k / 8, k % 2);
    }
    d[i] = rounded_to_zero(sum);
  }
}

// ldmatrix.x4: each lane reads what it gets, which the sanitizers see.
inline void load_matrices(uint32_t (&matrix)[4], const void* row, Site site) {
  require_aligned(row, 16, "ldmatrix");
  const char* from[4];
  {
    Hidden hidden;
    const auto rows = meet("ldmatrix", 0xFFFFFFFFu, &row, sizeof(row), false, site);
    const int lane = current->lane();
    for (int i = 0; i < 4; ++i) {
      memcpy(&from[i], rows[8 * i + lane / 4], sizeof(from[i]));
      from[i] += 4 * (lane % 4);
    }
  }
  for (int i = 0; i < 4; ++i) memcpy(&matrix[i], from[i], 4);
}

}  // namespace emu
