// What flow_warp_cpu.cpp compiles once per instruction set, in this order; no include guard.
#include "common/simd.h"

#include "common/pixel_major.h"

#include "flow_warp/flow_warp_pixels.h"

#include "flow_warp/flow_warp_rows.h"
