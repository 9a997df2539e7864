"""A user's network as a score takes it: a TorchScript file or any callable, uint8 clips in, one row a clip out.

Decides how it is called and how it is named in a protocol; no weights are ever fetched.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

Network: TypeAlias = str | Path | Callable[..., Tensor]


def to_bytes(video: Tensor) -> Tensor:
    """[-1, 1] to uint8: the inverse of uint8 / 127.5 - 1."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def clip_shape(video: Tensor, name: str) -> str:
    """ "3x16x64x64" for a protocol.

    Raises:
        ValueError: not (B, C, T, H, W) with B of at least 1.
    """
    if video.ndim != 5 or not len(video):
        raise ValueError(f"expected {name} of shape (B, C, T, H, W) with B at least 1, got {tuple(video.shape)}")
    return "x".join(map(str, video.shape[1:]))


class LabelledNetwork:
    """A network and the label that stands for it in protocols.

    Args:
        network: a TorchScript file, or a callable that takes uint8 (B, C, T, H, W) and returns (B, D). The file's
            module gets three channels (grey is repeated) and the keywords `options`.
        options: keywords for a TorchScript file.
        batch_size: clips that go through it at once.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no TorchScript.
    """

    def __init__(self, network: Network, *, batch_size: int = 16, **options: Any) -> None:
        self._batch_size = batch_size
        self._is_file = isinstance(network, (str, Path))
        if not isinstance(network, (str, Path)):
            self._call: Callable[..., Tensor] = network
            self._options: dict[str, Any] = {}
            self.label = getattr(network, "label", None) or getattr(network, "__name__", type(network).__name__)
            return
        path = Path(network)
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "expected a TorchScript file of a network, no such file", str(path))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            self._call = torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as error:
            raise ValueError(
                f"{path}: expected a TorchScript file of a network ({str(error).splitlines()[0]})"
            ) from error
        self._options = options
        self.label = f"{path.name} sha256:{digest[:16]}"

    @torch.no_grad()
    def __call__(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) in [-1, 1] to the network's (B, D), floating point, on the clips' device.

        Raises:
            ValueError: the network returned another shape.
        """
        parts = []
        for clips in video.split(self._batch_size):
            clips = to_bytes(clips)
            if self._is_file:
                self._call.to(clips.device)  # type: ignore[attr-defined]
                clips = clips.expand(-1, 3, *clips.shape[2:]) if clips.shape[1] == 1 else clips
            rows = self._call(clips, **self._options)
            if rows.ndim != 2 or len(rows) != len(clips):
                raise ValueError(
                    f"{self.label}: expected (B, D) = ({len(clips)}, D) out of it, got {tuple(rows.shape)}"
                )
            parts.append(rows.detach())
        return torch.cat(parts)
