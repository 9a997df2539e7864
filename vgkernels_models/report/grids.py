"""Clips side by side: looping grids as H.264, slices of space and time as pictures.

Decides how clips are put together and enlarged; what is shown is left to the caller.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vgkernels_models.report.encode import ClipEncoder, png

_GAP, _GAP_COLOUR = 1, 72  # pixels, and a grey of 255 that shows where black clips end
_WIDTH = 480  # pixels of an encoded grid at least, so that halved chroma keeps the colour of every pixel


def tiled(clips: Tensor) -> Tensor:
    """(R, K, C, T, H, W) in [-1, 1], C = 1 or 3, as the frames of one grid: (T, 3, H', W') uint8."""
    pixels = ((clips.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    rows, columns, _, frames, height, width = pixels.shape
    pixels = pixels.expand(-1, -1, 3, -1, -1, -1)
    padded = F.pad(pixels, (0, _GAP, 0, _GAP), value=_GAP_COLOUR)  # (R, K, 3, T, H + gap, W + gap)
    grid = padded.permute(3, 2, 0, 4, 1, 5).reshape(frames, 3, rows * (height + _GAP), columns * (width + _GAP))
    return grid[..., :-_GAP, :-_GAP]


def square(clips: Tensor, side: int) -> Tensor:
    """The first clips (N, C, T, H, W) as (R, K, C, T, H, W) of at most side x side."""
    columns = min(side, len(clips))
    rows = min(side, len(clips) // columns)
    return clips[: rows * columns].unflatten(0, (rows, columns))


def grid_mp4(clips: Tensor, rate: float, min_width: int = _WIDTH) -> bytes:
    """(R, K, C, T, H, W) in [-1, 1] as one looping H.264 clip."""
    encoder = ClipEncoder(rate, min_width=min_width)
    for frame in tiled(clips):
        encoder.add(frame)
    return encoder.finish()


def time_slices(clips: Tensor) -> Tensor:
    """(K, C, T, H, W) to (K, C, T, W): of each clip the row of pixels where most happens, down the page in time."""
    change = clips.float().std(2, correction=0).mean((1, 3))  # (K, H): over time, then over C and W
    rows = change.argmax(1)
    return clips[torch.arange(len(clips), device=clips.device), :, :, rows]


def slices_png(rows: Tensor) -> bytes:
    """(R, K, C, T, W) time slices in [-1, 1] as a picture of R rows, enlarged by a whole factor."""
    image = tiled(rows.unsqueeze(3))[0]  # (3, H', W'): a slice is a clip of one frame, with time for its height
    scale = max(1, -(-_WIDTH // image.shape[2]))
    return png(image.repeat_interleave(scale, 1).repeat_interleave(scale, 2))
