"""What holding TGAN's constraint costs a training run: `python -m benchmarks.svc_training --json FILE`.

The same small GAN several times over, one a schedule of `SingularValueClipping`, all in step: each trains its critic
and generator on the same clips, in a fresh random order at every step, so that a slow minute hits them all. Not an op's
file; the critic is TGAN's, with half its channels unless told, the clips are synthetic and smaller than TGAN's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vgkernels
from benchmarks import measure, table
from benchmarks.measure import Cost
from benchmarks.svc_projection import of_layer

NOISE, LAYERS = 100, 5  # of the generator; of the critic
LEARNING_RATE = 5e-5  # TGAN's, with RMSprop
WITHOUT = "without"
Clip = Callable[[], Sized | None]  # gives the matrices that went through a projection, or a report of them


class SVDLoop:
    """What TGAN's users write: a full SVD a layer, every fifth step; gamma by TGAN's rule."""

    def __init__(self, module: nn.Module, every: int = 5) -> None:
        self.module, self.every, self.calls = module, every, 0

    @torch.no_grad()
    def step(self) -> list[Tensor]:
        self.calls += 1
        if self.calls % self.every:
            return []
        weights = matrices(self.module)
        for weight in weights:
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            weight.copy_((u * s.clamp(max=1)) @ vh)
        for norm in (m for m in self.module.modules() if isinstance(m, nn.BatchNorm3d)):
            std = torch.as_tensor(norm.running_var).sqrt()
            norm.weight.copy_(norm.weight.clamp(0.01 * std, std))
        return weights


SCHEDULES: Mapping[str, Callable[[nn.Module], Clip | None]] = {
    WITHOUT: lambda critic: None,
    "svd loop, every=5": lambda critic: SVDLoop(critic).step,
    "every=5": lambda critic: vgkernels.SingularValueClipping(critic).step,
    "every=1": lambda critic: vgkernels.SingularValueClipping(critic, every=1).step,
    "lazy=0.1": lambda critic: vgkernels.SingularValueClipping(critic, lazy=0.1).step,
    "lazy=0.3": lambda critic: vgkernels.SingularValueClipping(critic, lazy=0.3).step,
}


def matrices(critic: nn.Module) -> list[Tensor]:
    """Views of the convolutions' weights as (out, in * kernel), which is what is clipped."""
    return [m.weight.detach().flatten(1) for m in critic.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]


def critic(width: int, size: int) -> nn.Sequential:
    """(B, 3, 16, size, size) -> (B, 1, 1, 1): TGAN's where width is 64; the last kernel spans all that is left."""
    layers: list[nn.Module] = []
    for inner, outer in ((3, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)):
        layers.append(nn.Conv3d(inner, outer, 4, 2, 1))
        if inner != 3:
            layers.append(nn.BatchNorm3d(outer, eps=2e-5))
            layers[-1].bias.requires_grad_(False)  # TGAN's has a gamma only
        layers.append(nn.LeakyReLU(0.2))
    layers += [nn.Flatten(1, 2), nn.Conv2d(8 * width, 1, size // 16)]  # time is down to 1 by now
    for layer in (layer for layer in layers if isinstance(layer, (nn.Conv2d, nn.Conv3d))):
        nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)  # Chainer's default, which TGAN keeps
    return nn.Sequential(*layers)


def generator(size: int, width: int = 16) -> nn.Sequential:
    """(B, NOISE) -> (B, 3, 16, size, size) in (-1, 1): one linear and four transposed 3-D convolutions."""
    first = (8 * width, 1, size // 16, size // 16)
    layers: list[nn.Module] = [nn.Linear(NOISE, first[0] * first[2] * first[3]), nn.Unflatten(1, first)]
    for inner, outer in ((8 * width, 4 * width), (4 * width, 2 * width), (2 * width, width)):
        layers += [nn.BatchNorm3d(inner), nn.ReLU(), nn.ConvTranspose3d(inner, outer, 4, 2, 1)]
    return nn.Sequential(*layers, nn.BatchNorm3d(width), nn.ReLU(), nn.ConvTranspose3d(width, 3, 4, 2, 1), nn.Tanh())


def clips(batch: int, size: int, rng: torch.Generator) -> Tensor:
    """(B, 3, 16, size, size) in [-1, 1]: a bright square that crosses a dark frame at its own speed."""
    made = torch.full((batch, 3, 16, size, size), -1.0)
    side = size // 4
    for clip in made:
        (x, y, u, v), colour = torch.rand(4, generator=rng).tolist(), torch.rand(3, 1, 1, generator=rng)
        for t in range(16):
            left, top = (int((size - side) * abs((p + (q - 0.5) * t / 8) % 2 - 1)) for p, q in ((x, u), (y, v)))
            clip[:, t, top : top + side, left : left + side] = colour
    return made


class Run:
    """One GAN under one schedule; runs with the same arguments start alike and see the same clips and noise."""

    def __init__(self, schedule: str, given: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.given, self.rng = given, torch.Generator().manual_seed(1)
        self.critic, self.generator = critic(given.width, given.size), generator(given.size)
        self.optimisers = [
            torch.optim.RMSprop(net.parameters(), lr=LEARNING_RATE, alpha=0.99, eps=1e-8)
            for net in (self.critic, self.generator)
        ]
        self.clip = SCHEDULES[schedule](self.critic)
        self.projected, self.least = 0, Cost(0, 0)  # matrices; the least work that projecting them takes

    def step(self) -> tuple[float, float]:
        """One step of WGAN, critic then generator; milliseconds (of the training, of the clipping)."""
        projected: Any = None
        real = clips(self.given.batch, self.given.size, self.rng)
        noise = torch.randn(self.given.batch, NOISE, generator=self.rng)
        watch = measure.Stopwatch(real.device)
        watch.mark()
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        fake = self.generator(noise)
        (self.critic(fake.detach()).mean() - self.critic(real).mean()).backward()
        self.optimisers[0].step()
        watch.mark()
        if self.clip is not None:
            projected = self.clip()
        watch.mark()
        (-self.critic(fake).mean()).backward(inputs=list(self.generator.parameters()))
        self.optimisers[1].step()
        watch.mark()
        self.count(projected)
        before, clipping, after = watch.laps(3)
        return before + after, clipping

    def count(self, projected: Any) -> None:
        """How many singular values exceeded the bound is only known of ours; nothing less is the least work."""
        if projected is None:
            return
        if isinstance(projected, vgkernels.SVCReport):
            modules = dict(self.critic.named_modules())
            layers = [modules[name.removesuffix(".weight")].weight for name in projected.names]
            above = projected.clipped
        else:
            layers, above = projected, [0] * len(projected)
        self.projected += len(layers)
        for weight, k in zip(layers, above, strict=True):
            m, n = sorted((len(weight), weight[0].numel()))
            one = of_layer(m, n, k)
            self.least = Cost(self.least.bytes + 4 * one.bytes, self.least.flops + one.flops)


def measured(given: argparse.Namespace, copy_gbps: float, gemm_gfps: float) -> list[dict[str, Any]]:
    """A row a schedule. A training step costs every schedule the same, so its median is taken over all of them."""
    runs = {schedule: Run(schedule, given) for schedule in SCHEDULES if given.svd or "svd" not in schedule}
    samples = measure.interleave({name: run.step for name, run in runs.items()}, given.steps)
    train_ms = statistics.median(train for taken in samples.values() for train, _ in taken)
    rows = []
    for schedule, run in runs.items():
        largest = max(float(torch.linalg.matrix_norm(w.double() @ w.double().T, 2)) for w in matrices(run.critic))
        clip_ms = statistics.fmean(clipping for _, clipping in samples[schedule])
        rows.append({"schedule": schedule, "train_ms": train_ms, "clip_ms": clip_ms, "projected": run.projected})
        rows[-1]["largest"] = largest**0.5
        rows[-1]["floor_ms"] = measure.floor_ms(run.least, copy_gbps, gemm_gfps) / given.steps
    return rows


def markdown(report: Mapping[str, Any]) -> str:
    """The table of docs/svc_projection.md."""
    meta, rows = report["meta"], report["rows"]
    head = ["schedule", "matrices projected", "clipping, ms a step", "ms a step in all", "against without"]
    floors = any("floor_ms" in row for row in rows)  # reports of before rows had them have none
    if floors:
        head.insert(3, "its floor")
    cells = [[*head, "largest singular value at the end"], ["---"] * (len(head) + 1)]
    for row in rows:
        total = row["train_ms"] + row["clip_ms"]
        ran = "-" if row["schedule"] == WITHOUT else f"{row['projected']} of {meta['steps'] * LAYERS}"
        times = [f"{row['clip_ms']:.3g}", f"{total:.3g}", f"{total / row['train_ms']:.3g}x"]
        if floors:
            reached = f"{row['floor_ms']:.3g} ms, {row['floor_ms'] / row['clip_ms']:.0%}" if row["projected"] else "-"
            times.insert(1, reached)
        cells.append([row["schedule"], ran, *times, f"{row['largest']:.6f}"])
    before, after, size = meta["load_before"][0], meta["load_after"][0], meta["size"]
    about = (
        f"{table.place(meta)}; load {before:.1f} to {after:.1f}. {meta['steps']} steps of {meta['batch']} clips of "
        f"16x{size}x{size}, a critic of {meta['parameters']:,} parameters. Training: the median of all schedules' "
        "steps; clipping: the mean of a schedule's."
    )
    return "\n".join([*("| " + " | ".join(line) + " |" for line in cells), "", about])


def lazy_verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """The goal: lazy is never slower than certifying at every step."""
    took = {row["schedule"]: row["clip_ms"] for row in rows}
    lazy = {schedule: ms for schedule, ms in took.items() if schedule.startswith("lazy")}
    slower = [schedule for schedule, ms in lazy.items() if ms > took["every=1"]]
    shares = ", ".join(f"{schedule} {ms / took['every=1']:.0%}" for schedule, ms in lazy.items())
    return f"time of every=1 that lazy takes: {shares}: {'missed' if slower else 'met'}"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.svc_training", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4, help="clips a step (default 4; TGAN's is 32)")
    parser.add_argument("--size", type=int, default=32, help="of a clip, a multiple of 16 (default 32; TGAN's is 64)")
    parser.add_argument("--width", type=int, default=32, help="the critic's first channels (default 32; TGAN's is 64)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-svd", dest="svd", action="store_false", help="leave out the slow loop over torch's SVD")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--table", type=Path, metavar="FILE.json", help="print a report's markdown table and stop")
    given = parser.parse_args(argv)
    if min(given.steps, given.width, given.threads) < 1 or given.batch < 2 or given.size < 16 or given.size % 16:
        parser.error("--steps, --width and --threads are at least 1, --batch 2, --size a multiple of 16")
    return given


def main(argv: list[str] | None = None) -> int:
    given = arguments(argv)
    if given.table:
        print(markdown(json.loads(given.table.read_text())))
        return 0
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(given.threads)
        with measure.natively():
            meta = measure.machine(torch.device("cpu"), given.threads)
            rows = measured(given, meta["copy_GBps"], meta["gemm_GFps"])
    finally:
        torch.set_num_threads(threads)
    meta |= {"load_after": os.getloadavg(), "steps": given.steps, "batch": given.batch, "size": given.size}
    meta["parameters"] = sum(p.numel() for p in critic(given.width, given.size).parameters() if p.requires_grad)
    print(markdown({"meta": meta, "rows": rows}), lazy_verdict(rows), sep="\n")
    if given.json:
        table.save(given.json, meta, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
