"""The demo's page and its numbers as JSON.

Decides what is shown and in which words; how a page looks is left to `vgkernels_models.report`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

import vgkernels
from vgkernels._native import native_status
from vgkernels_models.data.clips import Clip
from vgkernels_models.report import page
from vgkernels_models.report.encode import png
from vgkernels_models.report.flow_wheel import legend_disc
from vgkernels_models.warp_demo.measure import METHODS, PANELS, FrameScore, KernelTime

_METHOD_NAMES = {
    "copy": "copy of the previous frame",
    "warp": "flow_warp",
    "blend": "flow_warp_blend",
    "oracle": "oracle composite (sees the true frame)",
}
_CAPTIONS = {
    "previous": "all that warping may look at",
    "flow": "where each pixel comes from: hue is direction, saturation is length",
    "occlusion": "orange: not visible in the previous frame",
    "warped": "flow_warp(previous, flow)",
    "blend": "flow_warp_blend(previous, flow, occlusion, previous): what is not known stays as it was",
    "true": "the frame to be matched",
    "error of copying": "|previous − true|, 4 × brighter",
    "error of warping": "|warped − true|, 4 × brighter",
    "oracle composite": "the true frame painted in where occluded: an upper bound, not a result",
}
_INTRODUCTION = (
    "Each frame is rebuilt from the one before it, moved along the optical flow between the two (OpenCV DIS). The flow "
    "has seen both frames, so this shows motion compensation, not forecasting. Beyond that the true frame is used only "
    "for scoring, and in the panel called oracle."
)
_PSNR_NOTE = "RGB, whole frame, higher is better. Click on a chart to see that frame above."
_OCCLUSION_NOTE = (
    "A pixel counts as occluded where following the flow f and then the reverse flow b does not lead back, "
    "|f + b|² &gt; 0.01 (|f|² + |b|²) + 0.5 (Sundaram et al. 2010), or where f leaves the frame."
)
_SCORES_NOTE = (
    "A frame has motion when at least a tenth of its pixels move by half a pixel or more. Scene cuts are not scored: a "
    "cut is a mean difference to the previous frame of at least 15 of 255 and three times the median of those around "
    "it. The blend can score below the plain warp: DIS finds look-alikes even for pixels with no true "
    "counterpart, whereas the blend leaves the old pixel there (in vid2vid, a generator paints a new one)."
)


def metrics(
    source: str, clip: Clip, scores: Sequence[FrameScore], summary: dict[str, Any], times: Sequence[KernelTime]
) -> dict[str, Any]:
    """Everything measured, ready for JSON: a number that is not finite becomes null."""
    frames, height, width = clip.frames.shape[:3]
    return _finite(
        {
            "clip": {"source": source, "frames": frames, "height": height, "width": width, "rate": clip.rate},
            "protocol": {
                "psnr": "RGB in [0, 1], whole frame, dB; means over frames with motion that are no scene cut",
                "flow": "OpenCV DIS, medium preset, finest scale 0, current to previous frame",
                "occlusion": "forward-backward consistency, Sundaram et al. 2010, or outside the frame",
                "time": "median ms a frame, 1 thread, alternating with base grid + normalise + grid_sample",
            },
            "summary": summary,
            "kernel_time": [asdict(time) for time in times],
            "frames": [asdict(score) for score in scores],
            "versions": {"vgkernels": vgkernels.__version__, "kernels": kernels(), "torch": torch.__version__},
        }
    )


def build_page(
    source: str,
    clip: Clip,
    scores: Sequence[FrameScore],
    summary: dict[str, Any],
    times: Sequence[KernelTime],
    clips: dict[str, bytes],
    max_flow: float,
) -> str:
    """The HTML: key numbers, clips in step, PSNR and occlusion by frame, tables."""
    frames, height, width = clip.frames.shape[:3]
    header = f" (its header claims {clip.header_frames})" if frames > clip.header_frames > 0 else ""
    subtitle = f"{frames} frames{header} of {width} × {height} at {clip.rate:.4g} a second. {_INTRODUCTION}"
    cuts = summary["scene_cuts"]
    psnr_curves = [
        page.Series(_METHOD_NAMES[name], [None if s.cut else s.psnr[name] for s in scores]) for name in METHODS[:3]
    ]
    occluded = page.Series("occluded share", [None if s.cut else 100 * s.occluded_share for s in scores])
    return page.page(
        f"flow_warp on {source}",
        subtitle,
        page.key_numbers(_headline(summary, times)),
        page.section("Clips", page.clip_player(_panels(clips, max_flow), clip.rate, [_frame_note(s) for s in scores])),
        page.section("PSNR by frame", page.line_chart(psnr_curves, "dB", first=1, marks=cuts), note=_PSNR_NOTE),
        page.section(
            "Occluded share", page.line_chart([occluded], "%", first=1, marks=cuts, height=170), note=_OCCLUSION_NOTE
        ),
        page.section("Scores on frames with motion", _score_table(summary), note=_SCORES_NOTE),
        page.section("Kernel time", _time_table(times), note=_time_note(height, width)),
    )


def kernels() -> str:
    """Which implementation of the ops ran on the CPU."""
    status = native_status()
    return "native" if status.cpu_loaded else f"PyTorch reference: {status.cpu_reason}"


def decibel(value: float, sign: str = "") -> str:
    """A PSNR, or with sign `+` a difference of two, in words."""
    return f"{value:{sign}.2f} dB" if math.isfinite(value) else ("–" if math.isnan(value) else "equal")


def _headline(summary: dict[str, Any], times: Sequence[KernelTime]) -> list[tuple[str, str]]:
    mean, moving, warp = summary["mean_psnr"], summary["frames_with_motion"], times[0]
    return [
        (decibel(mean["warp"]), f"PSNR of flow_warp on frames with motion; copying gives {decibel(mean['copy'])}"),
        (_share(summary["beats_copy_share"]["warp"]), f"of the {moving} frames with motion: warped beats copied"),
        (_share(summary["mean_occluded_share"], 1), "of the pixels are occluded, on average"),
        (
            f"{warp.grid_sample_ms / warp.ours_ms:.1f} ×",
            f"the speed of grid + grid_sample: {warp.ours_ms:.2f} ms a frame",
        ),
    ]


def _panels(clips: dict[str, bytes], max_flow: float) -> list[str]:
    wheel = page.picture(png(legend_disc()), "flow colour wheel") + f"<span>rim =<br>{max_flow:.1f} px</span>"
    return [
        page.clip_panel(name, _CAPTIONS[name], clips[name], overlay=wheel if name == "flow" else "") for name in PANELS
    ]


def _frame_note(score: FrameScore) -> str:
    if score.cut:
        return f"frame {score.frame}: scene cut, not scored"
    values = ", ".join(f"{name} {decibel(score.psnr[name])}" for name in METHODS[:3])
    return f"frame {score.frame}: {values}; {score.occluded_share:.1%} occluded{'' if score.moving else '; no motion'}"


def _score_table(summary: dict[str, Any]) -> str:
    mean, beats = summary["mean_psnr"], summary["beats_copy_share"]
    rows = [["copy of the previous frame", decibel(mean["copy"]), "", ""]]
    rows += [
        [_METHOD_NAMES[name], decibel(mean[name]), decibel(mean[name] - mean["copy"], "+"), _share(beats[name])]
        for name in METHODS[1:]
    ]
    return page.table(["rebuilt by", "mean PSNR", "against copying", "frames where it beats copying"], rows)


def _time_table(times: Sequence[KernelTime]) -> str:
    rows = [
        [
            time.op,
            f"{time.ours_ms:.3f} ms",
            f"{time.grid_sample_ms:.3f} ms",
            f"{time.grid_sample_ms / time.ours_ms:.2f} ×",
            f"{time.max_difference:.1e}",
        ]
        for time in times
    ]
    return page.table(["op", "vgkernels", "grid_sample path", "ratio", "largest difference"], rows)


def _time_note(height: int, width: int) -> str:
    return (
        f"On the same {width} × {height} frames (3 channels, fp32), alternating, one thread, medians. The path: base "
        "grid, normalise, <code>F.grid_sample(bilinear, border, align_corners=True)</code>, and for the blend the "
        f"composite. vgkernels {vgkernels.__version__} ({html.escape(kernels())}), torch {torch.__version__}. "
        "<code>python -m benchmarks flow_warp</code> measures more sizes, layouts and directions."
    )


def _share(value: float, digits: int = 0) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}%}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
