// Decides what the switches in mutated sources do (mutations.py writes them): nothing, unless the environment variable
// VGKERNELS_MUTANT names their number; then a barrier, check, atomic, mask or clamp is gone. Included by mutated
// sources only, so one compilation serves all mutants. Which sites there are, and which tests run, is decided
// elsewhere.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>

#include <cstdlib>
#include <type_traits>

#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wparentheses"
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace mutants {

constexpr int kMost = 1 << 15;  // bytes of the file VGKERNELS_MUTANTS_REACHED: two for each site
inline unsigned char nowhere[kMost];

struct Switches {
  int on = -1;
  unsigned char* reached =
      nowhere;  // [2 site]: with integers, [2 site + 1]: with other operands, which stay as they are
  Switches() {
    if (const char* number = std::getenv("VGKERNELS_MUTANT")) on = std::atoi(number);
    const char* path = std::getenv("VGKERNELS_MUTANTS_REACHED");
    const int file = path ? open(path, O_RDWR) : -1;
    if (file < 0) return;
    void* shared = mmap(nullptr, kMost, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (shared != MAP_FAILED) reached = static_cast<unsigned char*>(shared);
  }
};
inline Switches switches;

// Atomic, so that TSan does not see the mark itself as a race.
template <bool kCounts = true>
inline __attribute__((always_inline)) bool is_on(int site) {
  __atomic_store_n(switches.reached + 2 * site + !kCounts, 1, __ATOMIC_RELAXED);
  return kCounts && switches.on == site;
}

template <class T>
constexpr bool kIsIndex =
    std::is_integral_v<std::remove_reference_t<T>> || std::is_pointer_v<std::remove_reference_t<T>>;
template <class A, class B>
constexpr bool kAreIndices = kIsIndex<A> && kIsIndex<B>;

// std::min, max and clamp without one of their bounds; a site of -1 is none.
template <class T = void, class A, class B>
inline __attribute__((always_inline)) auto least(int keep_a, int keep_b, A a, B b) {
  using C = std::conditional_t<std::is_void_v<T>, std::common_type_t<A, B>, T>;
  if (keep_a >= 0 && is_on<kIsIndex<C>>(keep_a)) return C(a);
  if (keep_b >= 0 && is_on<kIsIndex<C>>(keep_b)) return C(b);
  return C(b) < C(a) ? C(b) : C(a);
}
template <class T = void, class A, class B>
inline __attribute__((always_inline)) auto most(int keep_a, int keep_b, A a, B b) {
  using C = std::conditional_t<std::is_void_v<T>, std::common_type_t<A, B>, T>;
  if (keep_a >= 0 && is_on<kIsIndex<C>>(keep_a)) return C(a);
  if (keep_b >= 0 && is_on<kIsIndex<C>>(keep_b)) return C(b);
  return C(a) < C(b) ? C(b) : C(a);
}
template <class T = void, class A, class L, class H>
inline __attribute__((always_inline)) auto clamped(int keep, A value, L low, H high) {
  using C = std::conditional_t<std::is_void_v<T>, A, T>;
  if (is_on<kIsIndex<C>>(keep)) return C(value);
  return C(value) < C(low) ? C(low) : C(high) < C(value) ? C(high) : C(value);
}

// What an atomic does, in steps that another thread can come between.
template <class T, class V>
T plain_add(T* p, V v) {
  if constexpr (std::is_arithmetic_v<V>) {
    const T old = *p;
    *p = old + v;
    return old;
  } else {
    p[0] += v.x, p[1] += v.y, p[2] += v.z, p[3] += v.w;
    return p[0];
  }
}
template <class T, class V>
T plain_exchange(T* p, V v) {
  const T old = *p;
  *p = v;
  return old;
}

}  // namespace mutants

#define VG_MUTANT_SKIP(site, ...) (mutants::is_on(site) ? (void)0 : (void)(__VA_ARGS__))
// `flip` is `!` where the check counts as passed, and nothing where it counts as failed.
#define VG_MUTANT_COMPARE(site, flip, a, op, b)                         \
  (mutants::is_on<mutants::kAreIndices<decltype(a), decltype(b)>>(site) \
       ? ((void)(a), (void)(b), flip decltype((a)op(b)){})              \
       : ((a)op(b)))
#define VG_MUTANT_TURN(site, a, op, b, later) \
  (mutants::is_on<mutants::kAreIndices<decltype(a), decltype(b)>>(site) ? (later) : ((a)op(b)))
#define VG_MUTANT_FLAG(site, ...) (mutants::is_on(site) || (__VA_ARGS__))
#define VG_MUTANT_ATOMIC(site, plain, f, ...) \
  (mutants::is_on(site) ? static_cast<decltype(f(__VA_ARGS__))>(mutants::plain(__VA_ARGS__)) : f(__VA_ARGS__))
#define VG_MUTANT_MASK(site, mask) (mutants::is_on(site) ? 1u << emu::current->lane() : (mask))
#define VG_MUTANT_BITS(site, a, b) (mutants::is_on(site) ? decltype((a) & (b))(a) : ((a) & (b)))
