"""Hypothesis strategies for chains; the options shrink, the numbers come from a seed."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tests.helpers.models import random_log, random_model

# JAX compiles once for each shape: its examples share this one.
JAX_BATCH, JAX_STEPS, JAX_STATES = (3,), 4, 3

seeds = st.integers(0, 2**32 - 1)


@st.composite
def models(
    draw,
    *,
    batch=None,
    num_steps=None,
    num_states=None,
    transition=None,
    normalised=None,
    zeros=None,
    lengths=None,
    final=None,
):
    """A `Model` small enough to enumerate; every option left None is drawn.

    Options: `zeros` the share of -inf entries, `lengths` and `final` whether there are any.
    """
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)])) if batch is None else batch
    num_steps = draw(st.integers(1, 5)) if num_steps is None else num_steps
    num_states = draw(st.integers(1, 4 if num_steps < 5 else 3)) if num_states is None else num_states
    transition = draw(st.sampled_from(["constant", "slot", "varying"])) if transition is None else transition
    normalised = draw(st.booleans()) if normalised is None else normalised
    zeros = draw(st.sampled_from([0.0, 0.2, 0.5])) if zeros is None else zeros
    spread = draw(st.sampled_from([1.0, 30.0, 1000.0]))
    rng = np.random.default_rng(draw(seeds))
    model = random_model(
        rng,
        batch=batch,
        num_steps=num_steps,
        num_states=num_states,
        transition=transition,
        normalised=normalised,
        spread=spread,
        zeros=zeros,
    )
    if draw(st.booleans()) if lengths is None else lengths:
        model = model.with_(lengths=rng.integers(1, num_steps + 1, size=batch))
    if draw(st.booleans()) if final is None else final:
        model = model.with_(log_final=random_log(rng, (*batch, num_states), zeros=zeros / 2))
    return model


def models_for(library, **options):
    """Models of any shape; for JAX of one shape, with lengths and log_final always there."""
    if library == "jax":
        fixed = {"batch": JAX_BATCH, "num_steps": JAX_STEPS, "num_states": JAX_STATES, "lengths": True, "final": True}
        return models(**{"transition": "constant", **fixed, **options})
    return models(**options)


@st.composite
def possible_models(draw, **options):
    """Models of which every sequence has a path."""
    model = draw(models(**{"zeros": 0.0, **options}))
    rng = np.random.default_rng(draw(seeds))
    blocked = rng.random(model.log_emission.shape) < draw(st.sampled_from([0.0, 0.3]))
    blocked[..., rng.integers(model.num_states)] = False  # one state is always open
    return model.with_(log_emission=np.where(blocked, -np.inf, model.log_emission))


@st.composite
def cuts(draw, num_steps):
    """Sizes of the chunks a sequence is cut into: all of 1, of 2, of 7, whole, or drawn."""
    kind = draw(st.sampled_from([1, 2, 7, num_steps, None]))
    if kind is not None:
        sizes = [kind] * (num_steps // kind) + [num_steps % kind]
        return [size for size in sizes if size]
    sizes = []
    while sum(sizes) < num_steps:
        sizes.append(draw(st.integers(1, num_steps - sum(sizes))))
    return sizes
