"""How much a network's features tell of the class: accuracy of a linear classifier trained on them.

Decides the classifier (multinomial logistic regression, standardised features, LBFGS in float64) and its protocol; the
features are the caller's, such as those of VGAN's discriminator (section 4.4 of its paper).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vgkernels_models.metrics.score import Score


def linear_probe(
    features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor, *, l2: float = 1e-2, data: str
) -> Score:
    """Trains on features (N, D) and labels (N), and scores the accuracy on others; the baseline is the largest class.

    Args:
        features, test_features: (N, D) and (M, D), floating point; flattened by the caller.
        labels, test_labels: (N) and (M) int64, classes from 0.
        l2: weight of half the squared norm of the weights, beside the mean cross-entropy.
        data: names features and data, for the protocol.

    Raises:
        ValueError: shapes that don't fit.
    """
    if features.ndim != 2 or features.shape[1:] != test_features.shape[1:]:
        raise ValueError(
            f"linear_probe: expected features (N, D) and (M, D), got {tuple(features.shape)} "
            f"and {tuple(test_features.shape)}"
        )
    if (labels.shape, test_labels.shape) != (features.shape[:1], test_features.shape[:1]):
        raise ValueError(
            f"linear_probe: expected a label for each feature, got {tuple(labels.shape)} and {tuple(test_labels.shape)}"
        )
    mean, deviation = features.double().mean(0), features.double().std(0).clamp(min=1e-6)
    train, test = ((each.double() - mean) / deviation for each in (features, test_features))
    classes = int(torch.cat([labels, test_labels]).max()) + 1
    weight = torch.zeros(train.shape[1], classes, dtype=torch.double, device=train.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.double, device=train.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(train @ weight + bias, labels) + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    correct = (test @ weight + bias).argmax(1) == test_labels
    largest = test_labels.bincount().max().item() / len(test_labels)
    return Score(
        "linear probe",
        correct.double().mean().item(),
        f"accuracy[logistic regression, l2 {l2:g}, {len(train)} to train, {len(test)} to test, {classes} classes, "
        f"{data}]",
        better="higher",
        baselines={"largest class": largest},
    )
