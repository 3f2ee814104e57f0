"""The README's Python blocks run, in order, in one namespace, and its comments on shapes are true."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 5
    space: dict = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"README block {number}", "exec"), space)
    assert space["posteriors"].shape == (2, 100, 5)
    assert space["best_states"].shape == (2, 100)
    assert space["streamed"].shape == (100, 5)
    assert space["found"].start.shape == (2, 4)
    assert (space["found"].start[1, 2:] == -1).all()
    wanted = torch.nn.functional.ctc_loss(
        space["scores"].transpose(0, 1), torch.tensor([[3, 7, 7], [5, 1, 2]]), [100, 100], [3, 3], reduction="none"
    )
    torch.testing.assert_close(space["loss"], wanted)
    assert (space["path"].diff() >= 0).all()
    hf, emission = space["hf"], space["emission"]
    posteriors = hf.forward_backward(space["initial"], space["transition"], emission).log_posteriors.exp()
    torch.testing.assert_close(emission.grad, posteriors)
    assert hf.viterbi_k_best(space["initial"], space["transition"], emission, k=3).states.shape == (2, 3, 100)
