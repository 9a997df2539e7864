// Decides under which namespace and dispatch key the ops of a build are registered, and whether it holds their schemas.
//   _C                                                       vgkernels            CPU    with schemas
//   _C_cuda (VG_CUDA)                                        vgkernels            CUDA
//   the tests' emulated kernels (VG_CUDA and VG_EMULATED)    vgkernels_emulated   CPU    with schemas
#pragma once

#include <torch/csrc/stable/library.h>

#if defined(VG_EMULATED)
#define VG_NAMESPACE vgkernels_emulated
#else
#define VG_NAMESPACE vgkernels
#endif

#if defined(VG_CUDA) && !defined(VG_EMULATED)
#define VG_DISPATCH_KEY CUDA
#else
#define VG_DISPATCH_KEY CPU
#define VG_SCHEMAS
#endif

#define VG_SCHEMAS_OF_(name, m) STABLE_TORCH_LIBRARY_FRAGMENT(name, m)
#define VG_KERNELS_OF_(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)
#define VG_LIBRARY_SCHEMAS(m) VG_SCHEMAS_OF_(VG_NAMESPACE, m)
#define VG_LIBRARY_KERNELS(m) VG_KERNELS_OF_(VG_NAMESPACE, VG_DISPATCH_KEY, m)
