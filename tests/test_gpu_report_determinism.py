"""The GPU report's step "determinism", with calls whose bits change and a device that goes wrong; needs no GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tools import gpu_report_determinism as determinism
from tools.gpu_report_calls import Call


def drifting(after: int) -> Any:
    """x -> 2 x, and a bit more from its so-manyth call on."""
    count = 0

    def function(x: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return 2 * x + (1e-6 if count > after else 0)

    return function


def test_bits_that_change_are_found() -> None:
    steady = determinism.measured(Call("steady", drifting(100), (torch.ones(3),), 1), "fwd+bwd", "cpu", 3)
    assert steady["wrong"] == [] and steady["repeats"] == {"with_flag": [], "without_flag": []}
    for after, flags in ((2, ["with the flag place 0 differs"]), (4, ["place 0 differs"])):
        call = Call("drifts", drifting(after), (torch.ones(3),), 1)
        row = determinism.measured(call, "fwd+bwd", "cpu", 3)
        assert row["wrong"] == flags
        free = dataclasses.replace(call, function=drifting(after), free=frozenset({0}))
        row = determinism.measured(free, "fwd+bwd", "cpu", 3)
        assert row["wrong"] == flags[: after == 2]  # what is free without the flag is not with it


def test_bits_are_compared_not_values() -> None:
    zero, nan = torch.tensor([0.0]), torch.tensor([torch.nan])
    assert determinism.same_bits(nan, nan.clone()) and not determinism.same_bits(zero, -zero)
    assert not determinism.same_bits(zero, zero.double())
    assert determinism.differing([zero, nan, zero], [zero, zero, zero]) == [1]


def test_what_raises_is_one_rows_fault() -> None:
    row = determinism.measured(Call("raises", lambda x: 1 / 0, (torch.ones(3),)), "fwd", "cpu", 3)
    assert len(row["wrong"]) == 3 and all("ZeroDivisionError" in wrong for wrong in row["wrong"])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A device that does everything at once: a graph is the call that was captured, which a replay makes again."""
    device: dict[str, Any] = {"replays": True, "side": None}
    run = Call.run

    def spying(self: Call, direction: str, tensors: Any) -> Any:
        results = run(self, direction, tensors)
        if device.pop("capturing", False):
            device["again"], device["results"] = lambda: run(self, direction, tensors), results
        return results

    class Graph:
        def replay(self) -> None:
            for old, new in zip(device["results"], device["again"](), strict=True):
                old.copy_(new) if device["replays"] else None

    @contextlib.contextmanager
    def capture(graph: Graph) -> Iterator[None]:
        device["capturing"] = True
        yield

    @contextlib.contextmanager
    def on(stream: Any) -> Iterator[None]:
        device["side"] = stream
        yield
        device["side"] = None

    class Stream:
        def wait_stream(self, other: Stream) -> None: ...

    names = {"Stream": Stream, "current_stream": Stream, "stream": on, "CUDAGraph": Graph, "graph": capture}
    names |= dict.fromkeys(("synchronize", "reset_peak_memory_stats"), lambda: None)
    names |= {"memory_allocated": lambda: 1_000_000, "max_memory_allocated": lambda: 4_000_000}
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Call, "run", spying)
    return device


def test_graphs_and_streams_that_go_wrong_are_found(stand_in: dict[str, Any]) -> None:
    weights = torch.linspace(0.5, 3, 6).view(2, 3)

    def halve(x: torch.Tensor) -> None:
        x /= 2

    def only_where_it_was_made(x: torch.Tensor) -> torch.Tensor:
        return x * (3 if stand_in["side"] else 2)

    for call in (Call("sin", torch.sin, (weights,), 1), Call("halve", halve, (weights,), in_place=True)):
        for direction in call.directions():
            row = determinism.measured(call, direction, "cuda", 3)
            assert row["wrong"] == [] and row["graph"] == row["streams"] == []
    assert row["memory"] == {"peak_MB": 3.0, "results_MB": 24e-6, "peak_over_results": 125000.0}
    row = determinism.measured(Call("side", only_where_it_was_made, (weights,)), "fwd", "cuda", 3)
    assert row["wrong"] == ["streams: place 0 differs"]
    stand_in["replays"] = False
    same = torch.ones(2, 3)  # both sets of inputs are alike: what was left of the capture would pass
    row = determinism.measured(Call("sin", torch.sin, (same,)), "fwd", "cuda", 3)
    assert row["wrong"] == ["graph: place 0 differs"]


def test_flag_is_put_back() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    determinism.measured(Call("steady", torch.sin, (torch.ones(3),)), "fwd", "cpu", 2)
    assert torch.are_deterministic_algorithms_enabled() == before


def test_determinism_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [Call("steady", torch.sin, (torch.ones(3),), 1), Call("drifts", drifting(1), (torch.ones(3),))]
    monkeypatch.setattr(determinism, "chosen", lambda *about: made)
    file = tmp_path / "determinism.json"
    assert determinism.main(["--repeats", "2", "--json", str(file)]) == 1
    report = json.loads(file.read_text())
    assert [(row["call"], row["direction"]) for row in report["rows"]] == [
        ("steady", "fwd"),
        ("steady", "fwd+bwd"),
        ("drifts", "fwd"),
    ]
    assert report["rows"][0]["graph"] == determinism.PLAINLY and report["meta"]["left_out"] == []
    assert capsys.readouterr().out.endswith("figure: 2 of 3 rows right, 1 wrong, 0 left out\n")
    assert determinism.main(["--seconds", "-1"]) == 1  # nothing was tried
