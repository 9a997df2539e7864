"""Two processes that train one model: equal weights bit by bit, and the gradient of the double batch.

Decides what holds between ranks; torchrun itself is in test_models_command.py.
"""

from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'vgkernels[models]'")

import training_fakes as fakes
from training_fakes import FakeConfig, TrainingOptions

from vgkernels_models.training.ranks import Ranks, _buckets

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


def states(out: Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(f"{out}.rank{rank}", weights_only=True) for rank in range(2)]


def test_ranks_stay_bit_equal_with_batch_norm_and_an_op_on_the_weights(tmp_path: Path) -> None:
    options = TrainingOptions(log_every=1, save_every=5, ema=0.9, clip_gradients=1.0)
    assert fakes.train_on_ranks(2, tmp_path / "run", FakeConfig(), options) == [0, 0]
    first, second = states(tmp_path / "run")
    fakes.assert_equal(first, second)  # running statistics too
    largest = torch.linalg.svdvals(first["critic.0.weight"].flatten(1))[0]
    assert largest == pytest.approx(0.3, rel=1e-5)  # so the op has clipped, on both
    fakes.assert_equal(fakes.weights(tmp_path / "run"), first)  # the first rank's files
    assert len(fakes.read_metrics(tmp_path / "run")) == 12
    fakes.train(tmp_path / "alone", options=options)
    assert not torch.equal(fakes.weights(tmp_path / "alone")["decoder.weight"], first["decoder.weight"])


def test_two_ranks_take_the_steps_of_one_with_the_double_batch(tmp_path: Path) -> None:
    config = {"norm": False, "noise": False, "clipped": False}
    options = TrainingOptions(log_every=1)
    assert fakes.train_on_ranks(2, tmp_path / "two", FakeConfig(batch_size=4, **config), options) == [0, 0]
    fakes.train(tmp_path / "one", FakeConfig(batch_size=8, **config), options)
    for (_, two), (_, one) in zip(*(fakes.read_metrics(tmp_path / name) for name in ("two", "one")), strict=True):
        assert two == pytest.approx(one, abs=1e-5)
    for name, tensor in fakes.weights(tmp_path / "one").items():
        torch.testing.assert_close(fakes.weights(tmp_path / "two")[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_loss_that_breaks_ends_all_ranks(tmp_path: Path) -> None:
    assert fakes.train_on_ranks(2, tmp_path / "run", FakeConfig(breaks_at=4), TrainingOptions()) == [1, 1]


def test_tensors_are_averaged_in_buckets_of_one_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[torch.Tensor] = []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat: sent.append(flat.clone()) or flat.mul_(3))
    monkeypatch.setattr("vgkernels_models.training.ranks._BUCKET", 6)
    tensors = [torch.ones(2, 2), torch.arange(3.0), torch.ones(2).double(), torch.ones(5, dtype=torch.int64)]
    transposed = torch.arange(6.0).reshape(2, 3).t()
    expected = [tensor.clone() for tensor in [*tensors, transposed]]
    Ranks(world=2).average([*tensors, transposed])
    for found, before in zip([*tensors, transposed], expected, strict=True):
        assert torch.equal(found, before * 1.5 if before.is_floating_point() else before)
    assert [len(flat) for flat in sent] == [7, 6, 2]
    assert list(_buckets([])) == []
