"""README's promises, run: its Python example, and each row of "Your line, ours" against the line it replaces.

The replaced lines are written from their papers and documentation, since the originals do not install.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vgkernels
from benchmarks import svc_training, table

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def resample(image: Tensor, flow: Tensor, padding_mode: str = "border") -> Tensor:
    """vid2vid's: a grid of [-1, 1] built at each call, plus the flow normalised to it."""
    height, width = image.shape[2:]
    x = torch.linspace(-1, 1, width, dtype=flow.dtype).view(1, 1, width).expand(len(image), height, width)
    y = torch.linspace(-1, 1, height, dtype=flow.dtype).view(1, height, 1).expand(len(image), height, width)
    grid = torch.stack((x + flow[:, 0] * 2 / (width - 1), y + flow[:, 1] * 2 / (height - 1)), dim=-1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=padding_mode, align_corners=True)


def resample2d(image: Tensor, flow: Tensor) -> Tensor:
    """flownet2's CUDA layer, its formula: four taps, each index clamped to the image by itself."""
    height, width = image.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    xf, yf = x + flow[:, 0], y + flow[:, 1]
    alpha, beta = xf - xf.floor(), yf - yf.floor()
    out = torch.zeros_like(image)
    for dy, wy in ((0, 1 - beta), (1, beta)):
        for dx, wx in ((0, 1 - alpha), (1, alpha)):
            column = (xf.floor().long() + dx).clamp(0, width - 1)
            row = (yf.floor().long() + dy).clamp(0, height - 1)
            tap = torch.stack([image[b, :, row[b], column[b]] for b in range(len(image))])
            out = out + (wx * wy).unsqueeze(1) * tap
    return out


def blended_resample(image: Tensor, flow: Tensor, mask: Tensor, new: Tensor) -> Tensor:
    return (1 - mask) * resample(image, flow) + mask * new


def svd_clip(w: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return (u * s.clamp(max=1)) @ vh


def svd_clip_loop(weights: list[Tensor]) -> list[Tensor]:
    """TGAN's: each layer as the matrix (out, in * kernel)."""
    return [svd_clip(w.flatten(1)).view_as(w) for w in weights]


def pot_distance(x: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    return pytest.importorskip("ot").sliced_wasserstein_distance(x, y, projections=theta)


def gru_loop(video: Tensor, reset: Tensor, update: Tensor, candidate: Tensor, bias: Tensor) -> Tensor:
    """DVD-GAN repositories': three convolutions a step."""
    h, states = video.new_zeros(video.shape[1], len(reset), *video.shape[3:]), []
    b_r, b_u, b_c = bias.chunk(3)
    for x in video:
        r = torch.sigmoid(F.conv2d(torch.cat([h, x], 1), reset, b_r, padding=1))
        u = torch.sigmoid(F.conv2d(torch.cat([h, x], 1), update, b_u, padding=1))
        c = torch.relu(F.conv2d(torch.cat([x, r * h], 1), candidate, b_c, padding=1))
        h = u * h + (1 - u) * c
        states.append(h)
    return torch.stack(states)


THEIRS: dict[str, Callable[..., Any]] = {
    "vid2vid `resample(image, flow)`": resample,
    "vid2vid `(1 - mask) * resample(image, flow) + mask * new`": blended_resample,
    "flownet2 `Resample2d()(image, flow)`": resample2d,
    '`F.grid_sample(image, grid, padding_mode="zeros", align_corners=True)`': lambda image, flow: resample(
        image, flow, "zeros"
    ),
    "`u, s, vh = torch.linalg.svd(w, full_matrices=False); (u * s.clamp(max=1)) @ vh`": svd_clip,
    "TGAN: that for each `w.flatten(1)` of `weights`, copied back": svd_clip_loop,
    "POT `ot.sliced_wasserstein_distance(x, y, projections=theta)`": pot_distance,
    "DVD-GAN, a loop: `r, u = sigmoid(conv([h; x])); c = relu(conv([x; r * h])); h = u * h + (1 - u) * c`": gru_loop,
}


def table_rows() -> list[tuple[str, str]]:
    section = README.split("## Your line, ours", 1)[1].split("\n## ", 1)[0]
    rows = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in section.splitlines()]
    return [(row[0].removeprefix("| "), row[1].rstrip(" |")) for row in rows if len(row) == 2][1:]


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: row[0])
def test_row_equals_the_line_it_replaces(row: tuple[str, str]) -> None:
    theirs, ours = row
    generator = torch.Generator().manual_seed(0)
    names: dict[str, Any] = {
        "image": torch.randn(2, 3, 17, 23, dtype=torch.float64, generator=generator),
        "flow": 6 * torch.randn(2, 2, 17, 23, dtype=torch.float64, generator=generator),
        "mask": torch.rand(2, 1, 17, 23, dtype=torch.float64, generator=generator),
        "new": torch.randn(2, 3, 17, 23, dtype=torch.float64, generator=generator),
        "w": torch.randn(7, 40, dtype=torch.float64, generator=generator) / 6,
        "weights": [torch.randn(5, 2, 3, 3, dtype=torch.float64, generator=generator) / k for k in (3, 5, 30)],
        "x": torch.randn(50, 5, dtype=torch.float64, generator=generator),
        "y": torch.randn(40, 5, dtype=torch.float64, generator=generator) + 1,
        "video": torch.randn(4, 2, 3, 5, 6, dtype=torch.float64, generator=generator),
        "bias": torch.randn(12, dtype=torch.float64, generator=generator),
        **{
            gate: torch.randn(4, 7, 3, 3, dtype=torch.float64, generator=generator) / 8
            for gate in ("reset", "update", "candidate")
        },
        "theta": torch.nn.functional.normalize(torch.randn(5, 30, dtype=torch.float64, generator=generator), dim=0),
    }
    function = THEIRS[theirs]
    expected = function(*(names[name] for name in inspect.signature(function).parameters if name in names))
    result = eval(ours.strip("`"), {"vgkernels": vgkernels}, names)
    if isinstance(expected, list):
        result = names["weights"]  # changed in place
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_every_row_is_there() -> None:
    assert [theirs for theirs, _ in table_rows()] == list(THEIRS)


def test_python_example_runs_and_says_the_shapes() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict[str, Tensor] = {}
    exec(example, names)
    assert names["warped"].shape == names["frame"].shape == (1, 3, 256, 512)
    torch.testing.assert_close(names["frame"], names["warped"])  # the mask is 0 everywhere
    assert names["states"].shape == (12, 2, 32, 8, 8) and names["last"].shape == (1, 2, 32, 8, 8)


def test_links_lead_somewhere() -> None:
    root = Path(__file__).resolve().parents[1]
    for page in [root / "README.md", *root.glob("*.md"), *root.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_training_example_holds_the_constraint() -> None:
    page = Path(__file__).resolve().parents[1] / "docs/svc_projection.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    assert example.count("lr=5e-5") == 1
    names: dict[str, Any] = {}
    exec(example.replace("lr=5e-5", "lr=5e-3"), names)  # ten steps would not get far
    layers = [layer for layer in names["critic"] if isinstance(layer, (nn.Conv3d, nn.Linear))]
    assert len(layers) == len(names["report"]) == 4 and sum(names["report"].clipped) > 4
    for layer in layers:
        assert torch.linalg.svdvals(layer.weight.detach().flatten(1).double()).max() <= 1 + 4e-6


@pytest.mark.parametrize("page", ["README.md", "docs/flow_warp.md", "docs/svc_projection.md"])
def test_tables_are_what_the_committed_results_print(page: str) -> None:
    root = Path(__file__).resolve().parents[1]
    source = (root / page).read_text()
    found = re.findall(r"<!-- (table|training) (\S+)(?: case=(.*?))? -->\n(.*?)<!-- end -->", source, re.S)
    assert len(found) == source.count("<!-- end -->") > 0
    for kind, file, case, text in found:
        report = json.loads((root / file).read_text())
        printed = table.markdown(report, match=case) if kind == "table" else svc_training.markdown(report)
        assert text.strip() == printed.strip()
