"""ConvGRU: layers of conv_gru as a module, called like torch.nn.GRU.

Decides names, shapes and initial values of the parameters, and how layers and directions are put together.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import check_option, check_tensor
from .conv_gru_arguments import ACTIVATIONS, ALGORITHMS
from .conv_gru_call import run_conv_gru


class ConvGRU(nn.Module):
    """Layers of `conv_gru`, forwards or in both directions; torch.nn.GRU for videos.

    Args:
        input_channels: of x.
        hidden_channels: of each layer's state in each direction.
        kernel_size: odd, the same in every dim of a map.
        num_layers: each takes what the one below gives, of both directions where there are two.
        bidirectional: whether a second set of weights runs over the clips backwards.
        dims: 2 for maps, x (T, B, Cin, H, W); 3 for volumes, x (T, B, Cin, D, H, W).
        activation: of the candidate, "relu" (DVD-GAN) or "tanh".
        bias: whether there is one; it belongs to the sum of both convolutions.
        batch_first: whether x and output are (B, T, ...) in place of (T, B, ...). h0 and h_n are what they are.
        checkpoint: as in `conv_gru`; an attribute, as the next two.
        algorithm: as in `conv_gru`.
        impl: as in `conv_gru`.
        device: of the parameters.
        dtype: of the parameters.

    Called as gru(x, h0=None, *, lengths=None) -> (output, h_n):
        x: as above; without the batch's dim one clip, then output, h0 and h_n are without it too.
        h0: (num_layers * num_directions, B, C, [D,] H, W), of x's dtype or float32 where that has 16 bits; None: zeros.
            Layer by layer, of each forward, then backward.
        lengths: (B,), as in `conv_gru`. Past a clip's end output repeats the state, it is not 0.
        output: (T, B, num_directions * C, [D,] H, W), of the last layer.
        h_n: as h0, the state after each direction's last step, float32 where x has 16 bits.

    Parameters, for layer l: weight_ih_l{l} (3C, Cin, k, k[, k]), weight_hh_l{l} (3C, C, k, k[, k]) and bias_l{l} (3C,),
    rows in the order r, z, n; with the suffix "_reverse" for the other direction. Drawn from U(-a, a), a =
    1 / sqrt(C k^2), for volumes of k^3: torch.nn.GRU's 1 / sqrt(C), C counted once for each tap. A parametrization, as
    spectral_norm, may stand on any of them.

    Raises:
        TypeError, ValueError: as `conv_gru`, and for sizes that are not positive.

    Example:
        >>> import torch, vgkernels
        >>> gru = vgkernels.ConvGRU(3, 8, num_layers=2, bidirectional=True, batch_first=True)
        >>> output, h_n = gru(torch.randn(2, 5, 3, 6, 6))
        >>> output.shape, h_n.shape
        (torch.Size([2, 5, 16, 6, 6]), torch.Size([4, 2, 8, 6, 6]))
    """

    def __init__(
        self,
        input_channels: int,
        hidden_channels: int,
        kernel_size: int = 3,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dims: int = 2,
        activation: str = "relu",
        bias: bool = True,
        batch_first: bool = False,
        checkpoint: bool = False,
        algorithm: str = "auto",
        impl: str = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        counts = {
            "input_channels": input_channels,
            "hidden_channels": hidden_channels,
            "kernel_size": kernel_size,
            "num_layers": num_layers,
        }
        for name, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, numbers.Integral):
                raise TypeError(f"ConvGRU: expected {name} to be an int, got {type(count).__name__}")
            if count < 1:
                raise ValueError(f"ConvGRU: expected {name} > 0, got {count}")
            if count >= 2**63:
                raise ValueError(f"ConvGRU: expected {name} < 2^63, got {count}")
        if kernel_size % 2 == 0:
            raise ValueError(f"ConvGRU: expected an odd kernel_size, got {kernel_size}")
        if not isinstance(dims, int) or dims not in (2, 3):
            raise ValueError(f"ConvGRU: expected dims 2 or 3, got {dims!r}")
        switches = {
            "bidirectional": bidirectional,
            "bias": bias,
            "batch_first": batch_first,
            "checkpoint": checkpoint,
        }
        for name, switch in switches.items():
            if not isinstance(switch, bool):
                raise TypeError(f"ConvGRU: expected {name} to be a bool, got {type(switch).__name__}")
        check_option("ConvGRU", "activation", activation, ACTIVATIONS)
        check_option("ConvGRU", "algorithm", algorithm, ALGORITHMS)
        check_option("ConvGRU", "impl", impl, ("auto", "native", "reference"))
        input_channels, hidden_channels, kernel_size, num_layers = map(int, counts.values())
        self.input_channels, self.hidden_channels, self.kernel_size = input_channels, hidden_channels, kernel_size
        self.num_layers, self.bidirectional, self.dims = num_layers, bidirectional, dims
        self.activation, self.bias, self.batch_first = activation, bias, batch_first
        self.checkpoint, self.algorithm, self.impl = checkpoint, algorithm, impl
        taps = (kernel_size,) * dims
        for layer in range(num_layers):
            inputs = input_channels if layer == 0 else hidden_channels * self.num_directions
            for suffix in self._suffixes(layer):
                shapes = {
                    "weight_ih": (3 * hidden_channels, inputs, *taps),
                    "weight_hh": (3 * hidden_channels, hidden_channels, *taps),
                    "bias": (3 * hidden_channels,),
                }
                for name, shape in shapes.items():
                    parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(name + suffix, parameter if name != "bias" or bias else None)
        self.reset_parameters()

    @property
    def num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        bound = 1 / math.sqrt(self.hidden_channels * self.kernel_size**self.dims)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, h0: Tensor | None = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("ConvGRU", "x", x)
        one_clip = x.dim() == self.dims + 2
        if one_clip:
            x = x.unsqueeze(1)
        elif x.dim() != self.dims + 3:
            raise ValueError(
                f"ConvGRU: expected x with {self.dims + 3} dims, or {self.dims + 2} for one clip, got {tuple(x.shape)}"
            )
        elif self.batch_first:
            x = x.transpose(0, 1)
        states: list[Tensor] | list[None] = [None] * (self.num_layers * self.num_directions)
        if h0 is not None:
            check_tensor("ConvGRU", "h0", h0)
            if h0.dim() == 0 or h0.shape[0] != len(states):
                raise ValueError(
                    f"ConvGRU: expected h0 of shape ({len(states)}, ...), a state for each layer and direction, "
                    f"got {tuple(h0.shape)}"
                )
            states = list((h0.unsqueeze(1) if one_clip else h0).unbind())
        last: list[Tensor] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction, suffix in enumerate(self._suffixes(layer)):
                output, h_T = run_conv_gru(
                    "ConvGRU",
                    x,
                    states[len(last)],
                    getattr(self, "weight_ih" + suffix),
                    getattr(self, "weight_hh" + suffix),
                    getattr(self, "bias" + suffix),
                    activation=self.activation,
                    lengths=lengths,
                    reverse=direction == 1,
                    checkpoint=self.checkpoint,
                    algorithm=self.algorithm,
                    impl=self.impl,
                )
                outputs.append(output)
                last.append(h_T)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
        h_n = torch.stack(last)
        if one_clip:
            return x.squeeze(1), h_n.squeeze(1)
        return (x.transpose(0, 1) if self.batch_first else x), h_n

    def extra_repr(self) -> str:
        text = f"{self.input_channels}, {self.hidden_channels}, kernel_size={self.kernel_size}"
        defaults = {
            "num_layers": 1,
            "bidirectional": False,
            "dims": 2,
            "activation": "relu",
            "bias": True,
            "batch_first": False,
            "checkpoint": False,
            "algorithm": "auto",
            "impl": "auto",
        }
        changed = {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}
        return ", ".join([text, *(f"{name}={value!r}" for name, value in changed.items())])

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self.num_directions]
