"""How many operations a call launches: what a GPU pays for."""

from __future__ import annotations

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
