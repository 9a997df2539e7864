// What svc_projection_cpu.cpp compiles once per instruction set, in this order; no include guard.
#include "common/simd.h"

#include "common/pixel_major.h"

#include "common/product_tile.h"

#include "svc_projection/svc_projection_product.h"

#include "svc_projection/svc_projection_panels.h"

#include "svc_projection/svc_projection_cholesky.h"

#include "svc_projection/svc_projection_tridiagonal.h"

#include "svc_projection/svc_projection_eigen.h"

#include "svc_projection/svc_projection_clip.h"

#include "svc_projection/svc_projection_phases.h"
