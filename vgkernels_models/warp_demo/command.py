"""The demo's command line, its progress, and its errors (one line, exit code 2).

Decides the flags and where the files go; computing is left to `measure.py`, the page to `report.py`, and what can go
wrong before this file is imported to `__main__.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from vgkernels_models.data.clips import INSTALLED_CLIPS, Clip, ClipError, find_clip, read_clip
from vgkernels_models.data.optical_flow import SMALLEST_SIDE, scene_cuts
from vgkernels_models.report.encode import EncodeError
from vgkernels_models.report.page import write_whole
from vgkernels_models.warp_demo.measure import (
    WrongResult,
    full_colour_flow,
    pairs_with_flow,
    summarise,
    time_kernels,
    warp_and_score,
)
from vgkernels_models.warp_demo.report import build_page, decibel, metrics


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; 0 when the report is written, 1 when the op is wrong, 2 when the input cannot be used."""
    options = _parse(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # frames are small: more threads mostly wait for each other. DIS and H.264 have their own
    try:
        _run(options.video, options.out, options.frames, options.size)
    except WrongResult as error:
        return _fail(str(error), 1)
    except (ClipError, EncodeError) as error:
        return _fail(str(error), 2)
    except OSError as error:
        return _fail(f"{error.filename or options.out}: cannot be written ({error.strerror or error})", 2)
    finally:
        torch.set_num_threads(threads)
    return 0


def _run(video: str, out: Path, frames: int, size: int) -> None:
    start = time.perf_counter()
    _check_writable(out)
    path = find_clip(video)
    clip = read_clip(path, frames, size)
    if min(clip.frames.shape[1:3]) < SMALLEST_SIDE:
        raise ClipError(_too_small(path, clip, size))
    source = video if video in INSTALLED_CLIPS else path.name
    print(f"{source}: {len(clip.frames)} frames of {clip.frames.shape[2]} x {clip.frames.shape[1]}", flush=True)

    pairs = pairs_with_flow(clip, scene_cuts(clip.frames), _progress)
    max_flow = full_colour_flow(pairs)
    scores, clips = warp_and_score(pairs, clip.rate, max_flow, _progress)
    times = time_kernels(pairs, _progress)
    summary = summarise(scores)

    numbers = json.dumps(metrics(source, clip, scores, summary, times), indent=1, allow_nan=False)
    write_whole(out / "metrics.json", numbers + "\n")
    write_whole(out / "report.html", build_page(source, clip, scores, summary, times, clips, max_flow))
    _print_summary(summary, [(each.op, each.ours_ms, each.grid_sample_ms) for each in times])
    print(f"report: {out / 'report.html'}  ({time.perf_counter() - start:.0f} s)")


def _too_small(path: Path, clip: Clip, size: int) -> str:
    needed = f"the flow estimator needs at least {SMALLEST_SIDE} pixels a side"
    if min(clip.full_size) < SMALLEST_SIDE:
        return f"{path}: {needed}, its frames are {clip.full_size[1]} x {clip.full_size[0]}"
    enough = -(-SMALLEST_SIDE * max(clip.full_size) // min(clip.full_size))  # rounded up
    shrunk = f"{clip.frames.shape[2]} x {clip.frames.shape[1]}"
    return f"--size {size} shrinks {path} to {shrunk}, {needed}: --size {enough} is enough"


def _print_summary(summary: dict[str, Any], times: Sequence[tuple[str, float, float]]) -> None:
    mean, beats, cuts = summary["mean_psnr"], summary["beats_copy_share"], summary["scene_cuts"]
    print(f"\nframes with motion: {summary['frames_with_motion']}, scene cuts: {cuts or 'none'}")
    if summary["frames_with_motion"]:
        print(f"mean PSNR: copy {decibel(mean['copy'])}, warp {decibel(mean['warp'])}, blend {decibel(mean['blend'])}")
        print(f"warp beats copy on {beats['warp']:.0%} of frames with motion, blend on {beats['blend']:.0%}")
        if mean["blend"] < mean["warp"]:
            print("(blend is below warp where flow finds look-alikes of hidden pixels: it keeps the old ones instead)")
    for op, ours_ms, peer_ms in times:
        print(
            f"{op}: {ours_ms:.3f} ms a frame, grid_sample path {peer_ms:.3f} ms ({peer_ms / ours_ms:.1f} x), 1 thread"
        )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vgkernels_models.warp_demo",
        description="Warps every frame of a clip from the one before it and writes a report.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--video", default="carphone", help=f"a video file, or one of: {', '.join(INSTALLED_CLIPS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/demo-warp"), help="folder of report.html, metrics.json")
    parser.add_argument("--frames", type=_at_least(2), default=120, help="read at most this many frames")
    parser.add_argument("--size", type=_at_least(SMALLEST_SIDE), default=640, help="longer side, in pixels, at most")
    return parser.parse_args(arguments)


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)

    return number


def _check_writable(out: Path) -> None:
    """Fails now rather than after the work."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass


def _progress(steps: Sequence[Any], label: str) -> Iterable[Any]:
    """A bar on a terminal, one line a step of a quarter elsewhere."""
    if sys.stdout.isatty():
        try:
            from rich.progress import track

            yield from track(steps, description=label)
            return
        except ImportError:
            pass
    for done, step in enumerate(steps, start=1):
        yield step
        if done * 4 // len(steps) > (done - 1) * 4 // len(steps):
            print(f"{label}: {done}/{len(steps)}", flush=True)


def _fail(message: str, code: int) -> int:
    print(f"warp_demo: {message}", file=sys.stderr)
    return code
