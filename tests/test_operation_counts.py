"""How many operations a call launches, which is what a GPU pays for; what JAX compiles."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hmm_functional as hf


class Launches(TorchDispatchMode):
    """Counts operations that compute; a view shares its input's storage and launches nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.count += not made or any(x.untyped_storage().data_ptr() not in given for x in made)
        return result


def launches(kernel: str, batch: int, steps: int, states: int) -> int:
    arrays = (torch.randn(states), torch.randn(states, states), torch.randn(batch, steps, states))
    with Launches() as counted:
        hf.log_likelihood(*arrays, kernel=kernel)
    return counted.count


def test_the_parallel_form_launches_few():
    assert launches("parallel", 32, 1000, 10) < 400


def test_the_reference_launches_some_a_step():
    fewer, more = launches("reference", 2, 100, 4), launches("reference", 2, 200, 4)
    assert more - fewer == pytest.approx(12 * 100, abs=100)


def test_the_batch_launches_nothing_more():
    assert launches("parallel", 1, 200, 5) == launches("parallel", 64, 200, 5)


REPEATED = {
    "log_likelihood": hf.log_likelihood,
    "forward_backward": hf.forward_backward,
    "viterbi": hf.viterbi,
    "viterbi_k_best": lambda *model: hf.viterbi_k_best(*model, k=2),
    "expected_transitions": hf.expected_transitions,
    "sample_posterior": lambda *model: hf.sample_posterior(*model, rng=jax.random.key(0)),
    "gradient": jax.grad(lambda *model: hf.log_likelihood(*model).sum(), argnums=(0, 1, 2)),
}


@pytest.mark.parametrize("name", REPEATED)
def test_jax_compiles_nothing_in_a_call_repeated(name, caplog):
    """Outside jit: a scan alone is compiled in every call, for a second."""
    draw = np.random.default_rng(0).normal
    models = [tuple(jnp.asarray(draw(size=shape)) for shape in ((2,), (2, 2), (1, 5, 2))) for _ in range(2)]
    REPEATED[name](*models[0])
    with jax.log_compiles(), caplog.at_level("DEBUG", "jax"):
        REPEATED[name](*models[1])
        assert not compilations(caplog)
        jax.jit(lambda x: x + 1)(models[1][0])
        assert len(compilations(caplog)) == 1


def compilations(caplog):
    return [record for record in caplog.records if "Finished XLA compilation" in record.getMessage()]
