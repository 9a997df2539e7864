"""svc_projection_ on views: weights that interleave in one storage, and negated ones."""

import pytest
import torch
from op_suite import needs_native
from svc_projection_samples import clipped, generator

from vgkernels import svc_projection_

ALGORITHMS = [pytest.param("auto", marks=needs_native), "svd"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_views_that_interleave_are_weights_of_their_own(algorithm: str) -> None:
    around = 5 * torch.randn(6, 20, generator=generator(0))
    cases = [[around[:, :9], around[:, 9:]], [around[::2], around[1::2]], [around[:, ::2], around[:, 1::2]]]
    for views in [*cases, [around[:, :2].view(torch.float64), around[:, 7:], around[:, 2:3], around[:, 3:7]]]:
        around.normal_(generator=generator(1))
        want = [clipped(view).to(view.dtype) for view in views]
        svc_projection_(views, algorithm=algorithm)
        for got, wanted in zip(views, want, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_negated_views(algorithm: str) -> None:
    for shape in ((5, 8), (8, 5), (4, 3, 2)):
        before = torch.randn(shape, generator=generator(2))
        weight = torch._neg_view(-before)
        assert svc_projection_(weight, algorithm=algorithm).clipped[0] > 0
        torch.testing.assert_close(weight.flatten(1), clipped(before.flatten(1)).float(), rtol=0, atol=1e-5)
