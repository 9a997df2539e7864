"""A convolutional GRU over a whole video, in one call.

    r_t = sigmoid(W_r * [h_(t-1); x_t] + b_r)            reset
    z_t = sigmoid(W_z * [h_(t-1); x_t] + b_z)            update; DVD-GAN writes u
    n_t = act(W_n * [r_t . h_(t-1); x_t] + b_n)          candidate; DVD-GAN writes c
    h_t = z_t . h_(t-1) + (1 - z_t) . n_t                * a "same" convolution, . element by element

Source: Clark, Donahue, Simonyan, Adversarial Video Generation on Complex Datasets (DVD-GAN), arXiv 1907.06571, appendix
A.2; Ballas et al., Delving Deeper into Convolutional Networks, arXiv 1511.06432. This file decides what a call means;
what it accepts is decided in conv_gru_arguments.py, what runs in conv_gru_call.py, how it is differentiated in
conv_gru_autograd.py. The kernels are in csrc/conv_gru, the reference's loop is in conv_gru_steps.py.
"""

from __future__ import annotations

from torch import Tensor

from .conv_gru_call import run_conv_gru


def conv_gru(
    x: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "relu",
    lengths: Tensor | None = None,
    reverse: bool = False,
    checkpoint: bool = False,
    algorithm: str = "auto",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Runs a convolutional GRU over all steps of `x`; the reset gate acts before the convolution.

    Args:
        x: (T, B, Cin, H, W), float64, float32, float16 or bfloat16, of any strides; or volumes, (T, B, Cin, D, H, W).
        h0: the state before the first step, (B, C, [D,] H, W), of x's dtype or of float32 where that has 16 bits;
            None: zeros.
        weight_ih: (3C, Cin, k, k[, k]), what is multiplied with x: the rows of r, z, n as in torch.nn.GRU. k is odd,
            the border padded by zeros. `pack_conv_gru_weights` makes both weights from those of three convolutions.
        weight_hh: (3C, C, k, k[, k]), what is multiplied with the state.
        bias: (3C,) or None.
        activation: of the candidate, "relu" (DVD-GAN) or "tanh".
        lengths: (B,) integers of 0 to T: the steps of each clip. Past its end a clip's state does not change; what x
            holds there counts for nothing, and gets a gradient of 0.
        reverse: whether to go from the last step to the first; with `lengths`, from each clip's own last step.
        checkpoint: whether to keep only x and the states for the backward, and compute the gates there once more.
        algorithm: of the convolutions on the CPU, "direct", "winograd" (k = 3, not float64) or "auto", the one
            that is expected to be faster. Winograd's F(4x4, 3x3) is faster and rounds more.
        impl: "native", "reference", or "auto", the kernel where there is one. Forward-mode AD has none and takes the
            reference. Where none is loaded, "auto" warns once and takes it (VGKERNELS_REQUIRE_NATIVE=1: raises).

    Returns:
        output, (T, B, C, [D,] H, W) of x's dtype: the state after each step, in the order of x. Past a clip's end it
        repeats the clip's last state; with `reverse` it is h0 there.
        h_T, (B, C, [D,] H, W): the state after the last step done, float32 where x has 16 bits, else of x's dtype. To
        go on from it gives what one call over all steps would.
        T = 0 gives an empty output and h0; B = 0 gives empty results and gradients of 0.

    Raises:
        TypeError: not a tensor; an integer, complex or other dtype; weights, bias or h0 of another dtype than x.
        ValueError: shapes, devices or options that don't fit; an even k; no channels, rows or columns; Winograd asked
            for where it can't be; on the CPU outside of compiled code and vmap also lengths outside of 0 to T.

    Arithmetic: float64 for float64, otherwise float32, in which the state is carried; the output is rounded once. On
    CUDA products come from torch's convolutions: in 16 bits they are rounded before the gates, in float32 they have 11
    bits of each factor where torch.backends.cudnn.allow_tf32 says so.
    Relative to the largest state in float64, float32 is within 1e-6 sqrt(T) by "direct" and 3e-5 by "winograd". NaN and
    Inf spread as the equations say, and stay in their clip.

    Autocast: x, weights and bias are cast to its dtype, h0 to float32; float64 is not cast.

    Differentiability: once in `x`, `h0`, weights and `bias`, only in what is asked, gradients in the arguments' dtypes;
    twice and more in plain PyTorch, right but slow. Frozen steps pass what they are given on to the state that they
    repeat.

    Determinism: on the CPU bitwise repeatable, for any number of threads.

    Without gradients the kernels' form of the weights is kept from the second call on with the same tensors, as long as
    their bits and x's shape stay the same, and freed with them.

    Source: DVD-GAN (arXiv 1907.06571), appendix A.2.

    Example:
        >>> import torch, vgkernels
        >>> x = torch.ones(3, 1, 1, 1, 1)  # of weights 0 and 1 and a 1 x 1 kernel: h + (1 - h) / 2 at each step
        >>> weight_ih, weight_hh = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1, 1), torch.zeros(3, 1, 1, 1)
        >>> output, h_T = vgkernels.conv_gru(x, None, weight_ih, weight_hh)
        >>> output.flatten(), h_T.flatten()
        (tensor([0.5000, 0.7500, 0.8750]), tensor([0.8750]))
    """
    return run_conv_gru(
        "conv_gru",
        x,
        h0,
        weight_ih,
        weight_hh,
        bias,
        activation=activation,
        lengths=lengths,
        reverse=reverse,
        checkpoint=checkpoint,
        algorithm=algorithm,
        impl=impl,
    )


def conv_gru_reference(
    x: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "relu",
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """`conv_gru` in plain PyTorch, one step at a time: any device, any derivative. Arguments as there."""
    return run_conv_gru(
        "conv_gru_reference",
        x,
        h0,
        weight_ih,
        weight_hh,
        bias,
        activation=activation,
        lengths=lengths,
        reverse=reverse,
        impl="reference",
    )
