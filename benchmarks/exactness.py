"""The numerics table: one hard model, every installed peer, float32 and float64.

    python -m benchmarks.exactness

Left-to-right, K = 20, T = 200, unit-variance Gaussians of D dimensions, one state's mean moved by +3 in every
dimension, as when one phone of a transcript is wrong. Exact is NumPy's logaddexp in long double, written here.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

NUM_STATES, NUM_STEPS = 20, 200


def hard_model(dim: int) -> tuple[Any, Any, Any, Any, Any]:
    """initial (K,), transition (K, K), observations (T, D), means (K, D), log_emission (T, K)."""
    rng = np.random.RandomState(0)  # the published construction
    means = rng.randn(NUM_STATES, dim)
    states = np.minimum(np.arange(NUM_STEPS) * NUM_STATES // NUM_STEPS, NUM_STATES - 1)
    observations = means[states] + rng.randn(NUM_STEPS, dim)
    means[7] += 3
    transition = 0.9 * np.eye(NUM_STATES) + 0.1 * np.eye(NUM_STATES, k=1)
    transition[-1, -1] = 1.0
    log_emission = -0.5 * ((observations[:, None] - means) ** 2).sum(-1) - dim / 2 * np.log(2 * np.pi)
    return np.eye(NUM_STATES)[0], transition, observations, means, log_emission


def exact(initial: Any, transition: Any, log_emission: Any) -> float:
    with np.errstate(divide="ignore"):
        message, step = (np.log(p.astype(np.longdouble)) for p in (initial, transition))
    message = message + log_emission[0]
    for row in log_emission[1:]:
        message = np.logaddexp.reduce(message[:, None] + step, axis=0) + row
    return float(np.logaddexp.reduce(message))


def ours(dtype: str, kernel: str = "auto") -> Callable[..., float]:
    def score(initial: Any, transition: Any, observations: Any, means: Any, log_emission: Any) -> float:
        import torch

        import hmm_functional as hf

        arrays = (torch.as_tensor(x).to(getattr(torch, dtype)) for x in (initial, transition, log_emission))
        initial, transition, log_emission = arrays
        return float(hf.log_likelihood(initial.log(), transition.log(), log_emission, kernel=kernel))

    return score


def hmmlearn(initial: Any, transition: Any, observations: Any, means: Any, log_emission: Any) -> float:
    model = importlib.import_module("hmmlearn.hmm").GaussianHMM(NUM_STATES, "diag")
    model.startprob_, model.transmat_, model.means_ = initial, transition, means
    model.covars_ = np.ones_like(means)
    return float(model.score(observations))


def dynamax(dtype: str, function: str) -> Callable[..., float]:
    def score(initial: Any, transition: Any, observations: Any, means: Any, log_emission: Any) -> float:
        import jax

        jax.config.update("jax_enable_x64", True)
        run = getattr(importlib.import_module("dynamax.hidden_markov_model"), function)
        arrays = (jax.numpy.asarray(x, getattr(jax.numpy, dtype)) for x in (initial, transition, log_emission))
        return float(run(*arrays).marginal_loglik)

    return score


def pomegranate(dtype: str) -> Callable[..., float]:
    def score(initial: Any, transition: Any, observations: Any, means: Any, log_emission: Any) -> float:
        import torch

        kind, before = getattr(torch, dtype), torch.get_default_dtype()
        torch.set_default_dtype(kind)
        try:
            normal = importlib.import_module("pomegranate.distributions").Normal
            initial, transition, means = (torch.tensor(x, dtype=kind) for x in (initial, transition, means))
            states = [normal(m, torch.ones_like(m), covariance_type="diag") for m in means]
            model = importlib.import_module("pomegranate.hmm").DenseHMM(
                states, edges=transition, starts=initial, ends=torch.ones(NUM_STATES)
            )
            return float(model.log_probability(torch.tensor(observations, dtype=kind)[None]))
        finally:
            torch.set_default_dtype(before)

    return score


def torch_struct(dtype: str) -> Callable[..., float]:
    def score(initial: Any, transition: Any, observations: Any, means: Any, log_emission: Any) -> float:
        import torch

        # its own stand-in for log 0
        logs = (np.log(p, out=np.full_like(p, -1e5), where=p > 0) for p in (initial, transition))
        start, step = (torch.as_tensor(x).to(getattr(torch, dtype)) for x in logs)
        emission = torch.as_tensor(log_emission).to(getattr(torch, dtype))
        potentials = step.T + emission[1:, :, None]
        potentials[0] += start + emission[0]
        chain = importlib.import_module("torch_struct").LinearChainCRF
        return float(chain(potentials[None]).partition)

    return score


CONTENDERS: dict[str, tuple[str, Callable[..., float]]] = {
    "hmm_functional f32": ("torch", ours("float32")),
    "hmm_functional f64": ("torch", ours("float64")),
    "hmm_functional parallel f32": ("torch", ours("float32", "parallel")),
    "hmm_functional parallel f64": ("torch", ours("float64", "parallel")),
    "hmmlearn f64": ("hmmlearn", hmmlearn),
    "dynamax f32": ("dynamax", dynamax("float32", "hmm_filter")),
    "dynamax f64": ("dynamax", dynamax("float64", "hmm_filter")),
    "dynamax parallel f32": ("dynamax", dynamax("float32", "parallel_hmm_filter")),
    "dynamax parallel f64": ("dynamax", dynamax("float64", "parallel_hmm_filter")),
    "pomegranate f32": ("pomegranate", pomegranate("float32")),
    "pomegranate f64": ("pomegranate", pomegranate("float64")),
    "torch-struct f32": ("torch_struct", torch_struct("float32")),
    "torch-struct f64": ("torch_struct", torch_struct("float64")),
}


def table(dims: tuple[int, ...] = (13, 39, 80)) -> str:
    """The Markdown table, a row a contender."""
    models = {dim: hard_model(dim) for dim in dims}
    truth = {dim: exact(model[0], model[1], model[4]) for dim, model in models.items()}
    rows = [
        "| | " + " | ".join(f"D = {dim}" for dim in dims) + " |",
        "|---" * (len(dims) + 1) + "|",
        "| exact | " + " | ".join(f"{truth[dim]:.2f}" for dim in dims) + " |",
    ]
    for name, (module, score) in CONTENDERS.items():
        try:
            importlib.import_module(module)
        except ImportError:
            rows.append(f"| {name} |" + " not installed |" * len(dims))
            continue
        cells = []
        for dim in dims:
            value = score(*models[dim])
            # right: as near as its own precision allows
            is_right = abs(value - truth[dim]) <= (1e-6 if "f32" in name else 1e-12) * abs(truth[dim])
            cells.append(f"{value:.2f}" if is_right else f"**{value:.2f}**")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(table())
    print("\nBold: off by more than 1e-6 (f32) or 1e-12 (f64) of the value.")
