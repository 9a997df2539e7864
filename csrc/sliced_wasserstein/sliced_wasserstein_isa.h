// What sliced_wasserstein_cpu.cpp compiles once per instruction set, in this order; no include guard.
#include "common/simd.h"

#include "common/pixel_major.h"

#include "common/product_tile.h"

#include "sliced_wasserstein/sliced_wasserstein_sort.h"

#include "sliced_wasserstein/sliced_wasserstein_project.h"

#include "sliced_wasserstein/sliced_wasserstein_rank.h"

#include "sliced_wasserstein/sliced_wasserstein_couple.h"

#include "sliced_wasserstein/sliced_wasserstein_pull.h"

#include "sliced_wasserstein/sliced_wasserstein_phases.h"
