"""Which model, and how well its parameters are known: number of states, matching of states, standard errors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from hmm_functional._check import need_count

from .conditional import ConditionalHMM
from .data import padded
from .initialize import best_names
from .report import NotConverged
from .trainable import EmissionHMM

Criterion = Literal["cross_validation", "bic", "aic"]


class Selection(NamedTuple):
    """What `select_num_states` found."""

    num_states: int
    scores: dict[int, float]
    """By number of states: held-out log-likelihood a frame (higher is better), or the criterion (lower is better)."""


def select_num_states(
    make: Callable[[int], EmissionHMM],
    sequences: Sequence[Tensor],
    candidates: Iterable[int],
    *,
    criterion: Criterion = "cross_validation",
    num_folds: int = 5,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Selection:
    """The number of states that predicts unseen sequences best, or has the lowest criterion.

    Args:
        make: gives a new module for a number of states.
        sequences: tensors (T_i, *frame).
        candidates: numbers of states to try.
        criterion: "cross_validation", over whole sequences; "bic" or "aic", of all data.
        num_folds: parts that the sequences are divided into; at most their number.
        generator: source of randomness of folds and starts; default torch's global one.
        options: for `fit`.

    Raises:
        TypeError: a `NeuralHMM`. ValueError: no candidates, fewer than two sequences to cross-validate with, or an
        unknown criterion.

    Example:
        >>> from pytorch_hmm import GaussianHMM
        >>> rng = torch.Generator().manual_seed(0)
        >>> data = [torch.randn(40, 1, generator=rng) + 6.0 * (torch.arange(40) // 10 % 2)[:, None] for _ in range(6)]
        >>> select_num_states(lambda k: GaussianHMM(k, 1), data, [1, 2], generator=rng).num_states
        2
    """
    numbers = [need_count("candidates", k, 1) for k in candidates]
    if not numbers:
        raise ValueError("candidates: expected at least one number of states, got none")
    if criterion not in ("cross_validation", "bic", "aic"):
        raise ValueError(f"criterion: expected 'cross_validation', 'bic' or 'aic', got {criterion!r}")
    if criterion == "cross_validation" and len(sequences) < 2:
        raise ValueError(f"sequences: expected at least two to hold some out, got {len(sequences)}; cut long ones")
    folds = min(need_count("num_folds", num_folds, 2), len(sequences))
    order = torch.randperm(len(sequences), generator=generator).tolist()
    scores = {}
    for k in numbers:
        if criterion == "cross_validation":
            scores[k] = _held_out(lambda: make(k), sequences, order, folds, generator, options)  # noqa: B023
        else:
            model = _fitted(make(k), sequences, generator, options)
            scores[k] = float(getattr(model, criterion)(*padded(sequences)))
    best = max if criterion == "cross_validation" else min
    return Selection(best(scores, key=lambda k: scores[k]), scores)


def _need_own(name: str, model: Any) -> None:
    """Raise for models that take inputs by name, and have weights of networks."""
    if isinstance(model, ConditionalHMM):
        raise TypeError(
            f"{name}: expected a model of observations alone, {type(model).__name__} depends on inputs or networks"
        )


def _fitted(model: EmissionHMM, sequences: Sequence[Tensor], generator: Any, options: dict[str, Any]) -> EmissionHMM:
    _need_own("make", model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConverged)
        model.fit(list(sequences), generator=generator, **options)
    return model


@torch.no_grad()
def _held_out(
    make: Callable[[], EmissionHMM],
    sequences: Sequence[Tensor],
    order: list[int],
    folds: int,
    generator: Any,
    options: dict[str, Any],
) -> float:
    """Log-likelihood a frame of sequences that the model was not fitted to."""
    total, frames = 0.0, 0
    for fold in range(folds):
        out = set(order[fold::folds])
        model = _fitted(make(), [x for i, x in enumerate(sequences) if i not in out], generator, options)
        for i in out:
            total, frames = total + model(sequences[i]).item(), frames + len(sequences[i])
    return total / frames


@torch.no_grad()
def match_states(model: EmissionHMM, reference: EmissionHMM, x: Tensor, lengths: Any = None) -> Tensor:
    """For each state of the reference the state of the model that is expected at the same frames most often.

    Args:
        model, reference: two models with equally many states; EM may have numbered them differently.
        x, lengths: observations to compare them on.

    Returns:
        (K,) int64, a permutation: `model.means[order]` lie beside `reference.means`.
    """
    if model.num_states != reference.num_states:
        raise ValueError(f"model: expected {reference.num_states} states as the reference has, got {model.num_states}")
    mine, theirs = (m.forward_backward(x, lengths)[0].double().flatten(0, -2) for m in (model, reference))
    return best_names(theirs.mT @ mine)


class _Reader(nn.Module):
    """Quantities of a model as functions of its parameters."""

    def __init__(self, model: EmissionHMM) -> None:
        super().__init__()
        self.model = model

    def forward(self, name: str, *arguments: Any) -> Tensor:
        """The property `name`, probabilities in place of their logs; or, without one, log p of all sequences."""
        if not name:
            total: Tensor = self.model(*arguments).sum()
            return total
        value = self.model._parametrized()[name].forward()
        return value.exp() if name.split(".")[-1].startswith("log_") else value


def standard_errors(model: EmissionHMM, x: Tensor, lengths: Any = None) -> dict[str, Tensor]:
    """Standard errors of all parameters at their maximum-likelihood estimates, by the observed information.

    Args:
        model: fitted to these observations by maximum likelihood.
        x, lengths: as the model takes them.

    Returns:
        By name ("initial", "transition", "means", ...), probabilities and not their logs, in float64 and the shape of
        the parameter. Where the data hold no information, as at probabilities of 0 or 1, an error of 0 is given.

    Raises:
        TypeError: a `NeuralHMM`. ValueError: the log-likelihood curves upwards in some direction: the model is not at a
        maximum.

    Cost: one forward and backward pass for each of P parameters, O(P^3) besides.

    References: Efron and Hinkley 1978; Zucchini and MacDonald 2009, section 3.6. The delta method takes errors from the
    free parameters to those that are read.

    Example:
        >>> from pytorch_hmm import GaussianHMM
        >>> x = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]).double()
        >>> hmm = GaussianHMM(1, 1, means=[[0.0]], covariances=[[1.0]])
        >>> standard_errors(hmm, x)["means"]
        tensor([[0.5000]], dtype=torch.float64)
    """
    _need_own("model", model)
    reader = _Reader(copy.deepcopy(model).double())
    x = x.double() if x.is_floating_point() else x
    weights = {name: p.detach() for name, p in reader.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in weights.values()]

    def read(flat: Tensor, name: str, *arguments: Any) -> Tensor:
        parts = zip(weights.items(), torch.split(flat, sizes), strict=True)
        given = {key: part.reshape(p.shape) for (key, p), part in parts}
        return torch.func.functional_call(reader, given, (name, *arguments))  # type: ignore[no-any-return]

    point = torch.cat([p.flatten() for p in weights.values()])
    rows = []
    leaf = point.clone().requires_grad_()
    (slope,) = torch.autograd.grad(read(leaf, "", x, lengths), leaf, create_graph=True)
    for i in range(len(point)):
        (row,) = torch.autograd.grad(slope[i], leaf, retain_graph=True)
        rows.append(row)
    information = -torch.stack(rows)
    values, vectors = torch.linalg.eigh(0.5 * (information + information.mT))
    least = 1e-9 * float(values.abs().max())
    if values.min() < -1e-4 * values.abs().max():
        raise ValueError(
            "model: expected a maximum of the likelihood of these observations, it curves upwards somewhere; fit it to "
            "them with a small tolerance first"
        )
    inverse = (vectors * torch.where(values > least, 1 / values.clamp_min(least), 0.0)) @ vectors.mT
    found = {}
    for name in model._parametrized():
        jacobian = torch.func.jacrev(lambda flat, n=name: read(flat, n))(point)
        variances = ((jacobian @ inverse) * jacobian).sum(-1)
        found[name.replace("log_", "")] = variances.clamp_min(0.0).sqrt()
    return found
