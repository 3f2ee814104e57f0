"""torch.func's transforms, also one around the other, over functions whose derivatives are primitives."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jvp

import hmm_functional as hf


@pytest.fixture
def model() -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = ((3,), (3, 3), (3, 4), (2, 5, 3))
    return [torch.randn(*shape, dtype=torch.float64, generator=rng) for shape in shapes]


def posterior(*model: torch.Tensor) -> torch.Tensor:
    found = hf.semi_markov_forward_backward(*model)
    parts = (found.log_posteriors, found.expected_durations, found.expected_transitions, found.log_likelihood)
    return torch.cat([x.nan_to_num(neginf=0.0).flatten() for x in parts])


def test_forward_mode_of_semi_markov_posteriors(model: list[torch.Tensor]) -> None:
    along = [torch.randn_like(x) for x in model]
    _, found = jvp(posterior, tuple(model), tuple(along))
    ahead, behind = (posterior(*(x + h * v for x, v in zip(model, along, strict=True))) for h in (1e-6, -1e-6))
    torch.testing.assert_close(found, (ahead - behind) / 2e-6, atol=1e-7, rtol=1e-6)


def test_reverse_mode_of_semi_markov_posteriors(model: list[torch.Tensor]) -> None:
    emission = model[3].clone().requires_grad_()
    (plain,) = torch.autograd.grad(posterior(*model[:3], emission).square().sum(), emission)
    found = grad(lambda e: posterior(*model[:3], e).square().sum())(model[3])
    torch.testing.assert_close(found, plain)


def test_hessian_of_a_semi_markov_likelihood(model: list[torch.Tensor]) -> None:
    def likelihood(e: torch.Tensor) -> torch.Tensor:
        return hf.semi_markov_log_likelihood(*model[:3], e).sum()

    wanted = torch.autograd.functional.hessian(likelihood, model[3])
    torch.testing.assert_close(hessian(likelihood)(model[3]), wanted)


def test_forward_mode_over_forward_mode() -> None:
    """Torch turns outer levels off in the rules of its Functions, which then give wrong numbers."""

    def plain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        costs, sums = ((x[:, None] - y) ** 2).sum(-1), {}
        for i in range(len(x)):
            for j in range(len(y)):
                before = [sums[at] for at in ((i - 1, j - 1), (i, j - 1), (i - 1, j)) if at in sums]
                sums[i, j] = costs[i, j] + (-torch.logsumexp(-torch.stack(before), 0) if before else 0.0)
        return sums[len(x) - 1, len(y) - 1]

    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, dtype=torch.float64, generator=rng) for n in (3, 4))
    for found, wanted in zip(
        *([jacfwd(jacfwd(f, i), 0)(x, y) for i in (0, 1)] for f in (hf.soft_dtw, plain)), strict=True
    ):
        torch.testing.assert_close(found, wanted)
