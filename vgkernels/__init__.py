"""Four PyTorch ops for video generation, with CPU and CUDA kernels. One import line an op; the rest is in its file."""

import sys

__version__ = "0.1.0"

try:
    import torch as _torch  # noqa: F401
except (ImportError, OSError) as error:  # OSError: one of torch's own libraries doesn't load
    if "vgkernels.info" not in sys.orig_argv:  # `python -m vgkernels.info` is how one finds out what is wrong
        raise ImportError(
            f"vgkernels needs PyTorch >= 2.11, and `import torch` fails here ({error}); see `python -m vgkernels.info`"
        ) from error
else:
    from .conv_gru import conv_gru as conv_gru, conv_gru_reference as conv_gru_reference
    from .conv_gru_module import ConvGRU as ConvGRU
    from .conv_gru_weights import pack_conv_gru_weights as pack_conv_gru_weights
    from .flow_warp import (
        flow_warp as flow_warp,
        flow_warp_blend as flow_warp_blend,
        flow_warp_blend_reference as flow_warp_blend_reference,
        flow_warp_reference as flow_warp_reference,
    )
    from .singular_value_clipping import SingularValueClipping as SingularValueClipping
    from .sliced_wasserstein import (
        sliced_wasserstein as sliced_wasserstein,
        sliced_wasserstein_reference as sliced_wasserstein_reference,
    )
    from .sliced_wasserstein_max import max_sliced_wasserstein as max_sliced_wasserstein
    from .sliced_wasserstein_projections import random_projections as random_projections
    from .sliced_wasserstein_pyramid import sliced_wasserstein_pyramid as sliced_wasserstein_pyramid
    from .sort_transport import sort_transport as sort_transport
    from .stiefel_retraction import stiefel_retraction_ as stiefel_retraction_
    from .svc_projection import (
        svc_projection as svc_projection,
        svc_projection_reference as svc_projection_reference,
    )
    from .svc_projection_inplace import svc_projection_ as svc_projection_
    from .svc_projection_report import SVCReport as SVCReport
