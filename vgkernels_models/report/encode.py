"""Pixels to bytes that a web page can hold: H.264 clips, frame by frame, and PNG pictures, both by PyAV.

Decides codec, quality and colour tags; what is shown and where is left to the page.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from av.video.stream import VideoStream

_TALLEST = 4096  # pixels that an enlarged frame may reach: libx264 ends at 16384, many decoders at 4096
_BT709 = 1  # the value of BT.709 in H.264's colour fields: browsers guess where it is not written


class EncodeError(RuntimeError):
    """The encoder refuses these frames; the message is one line."""


class ClipEncoder:
    """An MP4 (H.264, crf 18, yuv420p) that grows frame by frame in memory, so that no panel is kept as pixels.

    Sides are padded to even numbers by repeating the edge. Frames narrower than `min_width` are enlarged by a whole
    factor, pixel by pixel, so that the halved chroma keeps the colour of every pixel; not beyond 4096 pixels of height.
    """

    def __init__(self, rate: float, min_width: int = 0) -> None:
        import av  # optional dependency: here, so that the package imports without it

        self._rate, self._min_width = Fraction(rate).limit_denominator(1001), min_width
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="mp4")  # +faststart cannot be written to memory
        self._stream: VideoStream | None = None

    def add(self, image: Tensor) -> None:
        """Appends one (3, H, W) frame: uint8, or floating point in [0, 1].

        Raises:
            EncodeError: the encoder can't take frames of this size.
        """
        import av
        from av.video.reformatter import ColorRange, Colorspace

        frame = _to_bytes(image)
        scale = max(1, min(-(-self._min_width // frame.shape[2]), _TALLEST // frame.shape[1]))  # the first rounded up
        frame = frame.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        frame = F.pad(frame[None].float(), (0, frame.shape[2] % 2, 0, frame.shape[1] % 2), mode="replicate")[0].byte()
        if self._stream is None:
            self._stream = self._open_stream(height=frame.shape[1], width=frame.shape[2])
        picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        try:
            self._container.mux(self._stream.encode(picture))
        except av.error.FFmpegError as error:
            raise EncodeError(f"H.264 can't encode {picture.width} x {picture.height} ({error.strerror})") from error

    def finish(self) -> bytes:
        """The finished file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.getvalue()

    def _open_stream(self, height: int, width: int) -> VideoStream:
        # a key frame every 12 keeps stepping through the page's clips quick
        stream = self._container.add_stream("libx264", rate=self._rate, options={"crf": "18", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = _BT709
        return stream


def png(image: Tensor) -> bytes:
    """(3 or 4, H, W) picture, uint8 or floating point in [0, 1], as PNG; the fourth channel is opacity."""
    import av

    pixels = _to_bytes(image).permute(1, 2, 0).contiguous()  # (H, W, C)
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width = pixels.shape[:2]
    encoder.pix_fmt = "rgba" if pixels.shape[2] == 4 else "rgb24"
    encoder.time_base = Fraction(1)
    packets = encoder.encode(av.VideoFrame.from_ndarray(pixels.numpy(), format=encoder.pix_fmt)) + encoder.encode(None)
    return b"".join(bytes(packet) for packet in packets)


def _to_bytes(image: Tensor) -> Tensor:
    return image if image.dtype == torch.uint8 else (image.clamp(0, 1) * 255).round().byte()
