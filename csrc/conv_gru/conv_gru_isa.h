// What conv_gru_cpu.cpp compiles once per instruction set, in this order; no include guard.
#include "common/simd.h"

#include "common/pixel_major.h"

#include "common/product_tile.h"

#include "conv_gru/conv_gru_maps.h"

#include "conv_gru/conv_gru_filters.h"

#include "conv_gru/conv_gru_winograd.h"

#include "conv_gru/conv_gru_direct.h"

#include "conv_gru/conv_gru_gates.h"

#include "conv_gru/conv_gru_gradients.h"

#include "conv_gru/conv_gru_engine.h"

#include "conv_gru/conv_gru_forward.h"

#include "conv_gru/conv_gru_backward.h"
