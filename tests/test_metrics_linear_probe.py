"""The linear probe: what is linear is found, what is noise is not."""

from __future__ import annotations

import pytest
import torch

from vgkernels_models.metrics.linear_probe import linear_probe


def sets(informative: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.arange(600) % 3
    features = torch.randn(600, 8)
    if informative:
        features[:, :3] += 6 * torch.eye(3)[labels]
    features[:, 3] *= 1e4  # a scale that must not matter
    return [features[:400], labels[:400], features[400:], labels[400:]]


def test_accuracy() -> None:
    found = linear_probe(*sets(informative=True), data="made up")
    assert found.value > 0.98
    assert found.baselines == {"largest class": pytest.approx(67 / 200)}
    assert "400 to train, 200 to test, 3 classes, made up" in found.protocol
    assert linear_probe(*sets(informative=False), data="noise").value < 0.45


def test_refusals() -> None:
    features, labels, test, test_labels = sets(informative=True)
    with pytest.raises(ValueError, match=r"expected features \(N, D\) and \(M, D\), got \(400, 8\) and \(200, 7\)"):
        linear_probe(features, labels, test[:, 1:], test_labels, data="")
    with pytest.raises(ValueError, match=r"expected a label for each feature, got \(400,\) and \(199,\)"):
        linear_probe(features, labels, test, test_labels[1:], data="")
