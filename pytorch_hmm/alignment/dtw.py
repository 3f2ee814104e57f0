"""Dynamic time warping as a module."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import hmm_functional as hf


class Warping(NamedTuple):
    """Two sequences laid side by side."""

    distance: Tensor
    """(...): as `hmm_functional.dtw`."""
    path: Tensor
    """(..., L, 2): frames of x and y met together, then -1."""
    warped: Tensor
    """(..., N, D): y on x's frames, means of those that each is paired with; 0 in the padding, NaN without a path."""


class DTWAligner(nn.Module):
    """Warps one sequence onto another; its settings are those of `hmm_functional.dtw`.

    Args:
        step_pattern: "symmetric1", "symmetric2" or "asymmetric".
        window: None, ("sakoe_chiba", radius), ("slanted_band", radius) or "itakura".
        open_begin, open_end: whether y may begin before and end after what is aligned.
        normalize: whether distances are divided by the sum of the path's weights.

    Example:
        >>> import torch
        >>> from pytorch_hmm import DTWAligner
        >>> slow, fast = torch.tensor([[0.0], [0.0], [1.0], [4.0]]), torch.tensor([[0.0], [1.0], [4.0]])
        >>> DTWAligner()(slow, fast)
        tensor(0.)
        >>> DTWAligner().align(slow, fast).warped[:, 0]
        tensor([0., 0., 1., 4.])
    """

    def __init__(
        self,
        step_pattern: str = "symmetric2",
        *,
        window: Any = None,
        open_begin: bool = False,
        open_end: bool = False,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.settings = {
            "step_pattern": step_pattern,
            "window": window,
            "open_begin": open_begin,
            "open_end": open_end,
            "normalize": normalize,
        }
        hf.dtw(torch.zeros(1, 1), torch.zeros(1, 1), **self.settings)  # raises what does not fit

    def forward(self, x: Tensor, y: Tensor, lengths: Any = None, target_lengths: Any = None) -> Tensor:
        """Distances (...) of x (..., N, D) and y (..., M, D)."""
        return self._dtw(x, y, lengths, target_lengths).distance  # type: ignore[no-any-return]

    def align(self, x: Tensor, y: Tensor, lengths: Any = None, target_lengths: Any = None) -> Warping:
        """The path, and y (..., M, D) on the frames of x (..., N, D); differentiable in both."""
        distance, path = self._dtw(x, y, lengths, target_lengths)
        batch = path.shape[:-2]
        rows, columns = path.clamp_min(0)[..., None].unbind(-2)
        is_cell = (path[..., :1] >= 0).to(y.dtype)
        paired = torch.take_along_dim(y.expand(*batch, *y.shape[-2:]), columns, dim=-2) * is_cell
        shape = (*batch, x.shape[-2])
        total = paired.new_zeros(*shape, y.shape[-1]).scatter_add(-2, rows.expand(paired.shape), paired)
        count = is_cell.new_zeros(*shape, 1).scatter_add(-2, rows, is_cell)
        warped = total / count.clamp_min(1)
        return Warping(distance, path, torch.where(path[..., :1, :1] < 0, torch.nan, warped))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items() if value not in (None, False))

    def _dtw(self, x: Tensor, y: Tensor, lengths: Any, target_lengths: Any) -> hf.DTW:
        return hf.dtw(x, y, lengths=lengths, target_lengths=target_lengths, **self.settings)
