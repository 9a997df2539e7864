"""A thousand Hypothesis cases and a thousand fuzzed calls for every op; ten times as many where VG_WEEKLY=1.

Decides how many, and how a crash is told. What is drawn is in hostile_cases.py, what comes of it in hostile_fuzz.py.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import hostile_fuzz
import pytest
import torch
from hostile_cases import GOOD, Arguments, relaid
from hostile_fuzz import Wrong, check_law, fuzzed, try_one
from hypothesis import HealthCheck, given, settings, strategies as st
from native.kernels import WEEKLY

import vgkernels

TESTS = Path(__file__).resolve().parent
CASES = 10_000 if WEEKLY else 1_000
SECONDS = 3000 if WEEKLY else 600  # of all calls: one that hangs fails
large = [HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:  # cases are small: more would wait for each other
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("op", GOOD)
def test_good_calls_equal_the_reference(op: str) -> None:
    @settings(max_examples=CASES, suppress_health_check=large, database=None)
    @given(st.randoms(use_true_random=False))
    def law(random: Random) -> None:
        check_law(op, random)

    law()


def test_any_call_is_accepted_or_refused(tmp_path: Path) -> None:
    now = tmp_path / "now"
    command = [sys.executable, str(TESTS / "hostile_fuzz.py"), str(CASES), str(now), *GOOD]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        pytest.fail(f"slow, or hanging in {described(now.read_text())}")
    if done.returncode:
        pytest.fail(f"exit {done.returncode} in {described(now.read_text())}\n{done.stderr[-2000:]}")
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [each for report in reports for each in report["wrong"]]
    assert not wrong, f"{len(wrong)} calls\n" + "\n".join(wrong[:10])
    assert [report["op"] for report in reports] == list(GOOD)
    for report in reports:  # else the fuzzer tries nothing but the checks
        assert CASES // 10 <= report["accepted"] <= CASES - CASES // 10


def described(case: str) -> str:
    """The call that `op seed` stands for."""
    op, seed = case.split()

    def text(value: object) -> str:
        if not isinstance(value, torch.Tensor) or value.is_nested or value.layout != torch.strided:
            return repr(value)
        return f"{value.dtype} {tuple(value.shape)} strides {value.stride()} on {value.device}"

    arguments = ", ".join(f"{name}={text(value)}" for name, value in fuzzed(op, int(seed)).items())
    return f"hostile_fuzz.try_one({op!r}, {seed}): {arguments}"


# ---- the fuzzer itself ----


def test_all_public_ops_are_tried() -> None:
    public = {name for name, value in vars(vgkernels).items() if callable(value) and not name.startswith("_")}
    references = {name for name in public if name.endswith("_reference")}
    assert public - references - {"SVCReport"} == set(GOOD)


def test_a_layout_changes_no_number() -> None:
    tensor, seen = torch.randn(2, 3, 4, 5), set()
    for seed in range(50):
        laid = relaid(Random(seed), tensor)
        assert torch.equal(laid, tensor)
        seen.add((laid.stride(), laid.storage_offset()))
    assert len(seen) > 5


def test_meta_goes_past_two_to_the_31() -> None:
    images = [fuzzed("flow_warp", seed)["image"] for seed in range(300)]
    assert max(image.numel() for image in images if isinstance(image, torch.Tensor)) > 2**32


def test_planted_faults_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = hostile_fuzz.call
    faults = {
        "value": lambda op, a: real(op, a) * 1.001,
        "gradient": lambda op, a: real(op, a) + 0.01 * (real(op, a) - real(op, a).detach()),
        "shape": lambda op, a: real(op, a)[:, :, :, :1],
    }
    for fault in faults.values():
        monkeypatch.setattr(hostile_fuzz, "reference", lambda op, a: real(op, {**a, "impl": "reference"}))
        monkeypatch.setattr(hostile_fuzz, "call", fault)
        with pytest.raises(Wrong):
            for seed in range(30):
                check_law("flow_warp", Random(seed))

    def refuses(op: str, arguments: Arguments) -> None:
        raise RuntimeError("some words of torch's")

    monkeypatch.setattr(hostile_fuzz, "call", refuses)
    with pytest.raises(Wrong, match="in other words"):
        try_one("flow_warp", 0)
