"""An iteration of EM beside hmmlearn and dynamax: Gaussians and mixtures, diagonal covariances, float64."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

SIZES = ((32, 1000, 10, 20), (1, 100_000, 5, 5))
"""(B, T, K, D)"""
COMPONENTS = 3
TARGET = 3.0
"""Times faster than each peer."""


class Start(NamedTuple):
    """Data (B, T, D) and the parameters that all contenders start from; M is 1 for plain Gaussians."""

    x: Any
    initial: Any
    transition: Any
    weights: Any
    means: Any
    variances: Any


def em(rounds: int = 5) -> dict[str, Any]:
    """Seconds an iteration, by size and contender, and the median over the rounds of each peer's over ours."""
    found = {}
    for size in SIZES:
        for components in (1, COMPONENTS):
            kind = "gaussian" if components == 1 else f"mixture of {components}"
            builders = {"ours": _ours, "hmmlearn": _hmmlearn, "dynamax": _dynamax}
            found[f"{kind} {'x'.join(map(str, size))}"] = race(builders, _start(*size, components), rounds, TARGET)
    return found


def race(
    builders: dict[str, Callable[[Any], Callable[[], Any]]], start: Any, rounds: int, target: float
) -> dict[str, Any]:
    """Median seconds of what each builds of a start, in turns; ratios to "ours"; who was left out, and why."""
    calls: dict[str, Callable[[], Any]] = {}
    skipped = {}
    for name, build in builders.items():
        try:
            calls[name] = build(start)
            calls[name]()
        except (ImportError, MemoryError) as error:
            skipped[name] = f"not installed: {error.name}" if isinstance(error, ImportError) else f"needs {error}"
            calls.pop(name, None)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # the last contender's threads may still be spinning
            begin = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    ratios = {
        name: statistics.median(x / y for x, y in zip(values, samples["ours"], strict=True))
        for name, values in samples.items()
        if name != "ours"
    }
    is_within = all(r >= target for r in ratios.values())
    return {"seconds": medians, "ratios": ratios, "target": target, "is_within": is_within, **skipped}


def _start(batch: int, steps: int, states: int, dim: int, components: int) -> Start:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(states, components, dim)) * 2
    path = np.cumsum(rng.random((batch, steps)) < 0.05, axis=1) % states
    x = centres[path, rng.integers(components, size=path.shape)] + rng.normal(size=(batch, steps, dim))
    return Start(
        x,
        np.full(states, 1 / states),
        rng.dirichlet(np.ones(states), size=states),
        rng.dirichlet(np.ones(components), size=states),
        centres + rng.normal(size=centres.shape) * 0.3,
        np.ones(centres.shape),
    )


def _ours(start: Start) -> Callable[[], Any]:
    import torch

    from hmm_functional import emissions, learning

    arrays = [torch.from_numpy(value) for value in start]
    x, initial, transition, weights, means, variances = arrays
    family: Any
    own: Any
    if means.shape[1] == 1:
        family, own = emissions.Gaussian(), emissions.GaussianParameters(means[:, 0], variances[:, 0])
    else:
        family, own = emissions.GaussianMixture(), emissions.MixtureParameters(weights.log(), means, variances)
    parameters = learning.HMMParameters(initial.log(), transition.log(), own)
    return lambda: learning.em_step(parameters, family, x)


def _hmmlearn(start: Start) -> Callable[[], Any]:
    from hmmlearn import hmm

    states, components, dim = start.means.shape
    frames, lengths = start.x.reshape(-1, dim), [start.x.shape[1]] * len(start.x)

    def step() -> Any:
        options = {"n_iter": 1, "tol": -np.inf, "init_params": "", "implementation": "scaling"}
        model: Any
        if components == 1:
            model = hmm.GaussianHMM(states, "diag", **options)
            model.means_, model.covars_ = start.means[:, 0], start.variances[:, 0]
        else:
            model = hmm.GMMHMM(states, components, covariance_type="diag", **options)
            model.weights_, model.means_, model.covars_ = start.weights, start.means, start.variances
        model.startprob_, model.transmat_ = start.initial, start.transition
        return model.fit(frames, lengths)

    return step


def _dynamax(start: Start) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    from dynamax.hidden_markov_model import DiagonalGaussianHMM, DiagonalGaussianMixtureHMM

    states, components, dim = start.means.shape
    x = jnp.asarray(start.x)
    own = {"initial_probs": start.initial, "transition_matrix": start.transition}
    scales = start.variances**0.5
    if components == 1:
        model: Any = DiagonalGaussianHMM(states, dim)
        own |= {"emission_means": start.means[:, 0], "emission_scale_diags": scales[:, 0]}
    else:
        model = DiagonalGaussianMixtureHMM(states, components, dim)
        own |= {
            "emission_weights": start.weights,
            "emission_means": start.means,
            "emission_scale_diags": scales,
        }
    parameters, properties = model.initialize(
        jax.random.PRNGKey(0), method="prior", **{name: jnp.asarray(value) for name, value in own.items()}
    )
    state = model.initialize_m_step_state(parameters, properties)

    @jax.jit
    def step(parameters: Any, state: Any) -> Any:
        found, likelihood = jax.vmap(lambda e: model.e_step(parameters, e))(x)
        return model.m_step(parameters, properties, found, state), likelihood

    return lambda: jax.block_until_ready(step(parameters, state))
