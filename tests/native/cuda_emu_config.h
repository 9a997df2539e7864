// Decides what a test may vary between two runs of one kernel: the schedule, the poison byte, when cp.async copies.
// Free of CUDA's names, so that pybind11 modules can include it; cuda_emu_sched.h obeys it.
#pragma once

#include <stdexcept>
#include <string>

namespace emu {

enum class Order { forward, reverse, random };

struct Config {
  Order order = Order::forward;  // of the blocks, and of the threads (or warps) inside a block
  bool warp_greedy = false;      // a warp runs until it stands at a block barrier before the next warp starts
  unsigned seed = 0;
  unsigned char poison = 0xFF;  // what shared memory holds before it is written: 0xFF makes NaNs
  bool copy_at_issue = false;   // cp.async copies when issued (finds overwrites too early) or when waited for
  int multiprocessors = 4;      // what cudaDeviceGetAttribute tells a launcher
  unsigned resident = 8;        // the most blocks of a cooperative launch, which run at once
  unsigned long launches = 0;   // counted, so that a test can see that a launcher took the path it is meant to
};
inline Config config;

// schedule: [greedy-]forward | [greedy-]reverse | [greedy-]random:SEED, or greedy; cp_async: "late" | "early".
inline void configure(const std::string& schedule, int poison, const std::string& cp_async) {
  const bool greedy = schedule.rfind("greedy", 0) == 0;
  std::string order = greedy ? schedule.substr(6) : schedule;
  if (greedy) order = order.empty() ? "forward" : order.substr(1);
  const bool random = order.rfind("random:", 0) == 0;
  if (!random && order != "forward" && order != "reverse")
    throw std::invalid_argument("emu: expected schedule [greedy-]forward|reverse|random:SEED, got " + schedule);
  if (cp_async != "late" && cp_async != "early")
    throw std::invalid_argument("emu: expected cp_async late or early, got " + cp_async);
  if (poison < 0 || poison > 0xFF)
    throw std::invalid_argument("emu: expected poison in [0, 255], got " + std::to_string(poison));
  config.order = random ? Order::random : order == "reverse" ? Order::reverse : Order::forward;
  config.seed = random ? unsigned(std::stoul(order.substr(7))) : 0;
  config.warp_greedy = greedy;
  config.poison = static_cast<unsigned char>(poison);
  config.copy_at_issue = cp_async == "early";
}

}  // namespace emu
