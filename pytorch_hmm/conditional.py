"""HMMs whose chain and emissions depend on what is passed beside the observations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from math import log
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

import hmm_functional as hf

from .data import Batch
from .fit import descend
from .hmm import BaseHMM
from .parametrize import full_precision
from .report import Callback, FitReport


class ConditionalHMM(BaseHMM):
    """An HMM given `inputs`: every method takes them by name, and so does `fit`, which is by gradient.

    A subclass gives `chain_arguments`, and `initialize_from_data` as a start for `fit`.
    """

    _is_conditional = True
    _has_own_states = True
    """Whether states are the same in all sequences."""
    _frame_inputs: ClassVar[dict[str, int]] = {}
    """Inputs that may be one a frame, by name, and the axes of one."""

    @abstractmethod
    def chain_arguments(self, x: Tensor, lengths: Any = None, **inputs: Any) -> dict[str, Any]:
        """What every chain function of `hmm_functional` takes, as in `hf.viterbi_k_best(**arguments, k=3)`.

        Returns:
            log_initial, log_transition, log_emission, lengths and, where there is one, log_final.
        """

    @abstractmethod
    def initialize_from_data(
        self,
        x: Tensor,
        lengths: Any = None,
        *,
        state_lengths: Any = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Set all parameters from observations, as a start for learning."""

    def forward(self, x: Tensor, lengths: Any = None, **inputs: Any) -> Tensor:
        """log p(x given the inputs) of each sequence, (...), nats."""
        return self._call(hf.log_likelihood, x, lengths, **inputs)  # type: ignore[no-any-return]

    def log_prob(self, x: Tensor, lengths: Any = None, **inputs: Any) -> Tensor:
        """The same as calling the module."""
        return self.forward(x, lengths, **inputs)

    def emission_log_prob(self, x: Tensor, lengths: Any = None, **inputs: Any) -> Tensor:
        """Log densities of frames, (..., T, K), nats; unobserved frames score 0, padding holds no meaning."""
        return self.chain_arguments(x, lengths, **inputs)["log_emission"]  # type: ignore[no-any-return]

    def forward_backward(self, x: Tensor, lengths: Any = None, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Posterior probabilities p(z_t given x), (..., T, K), and log p(x), (...)."""
        found = self._call(hf.forward_backward, x, lengths, **inputs)
        return found.log_posteriors.exp(), found.log_likelihood

    def filter(self, x: Tensor, lengths: Any = None, **inputs: Any) -> Tensor:
        """Filtered probabilities p(z_t given x_0..t), (..., T, K)."""
        return self._call(hf.forward, x, lengths, **inputs).log_filtered.exp()  # type: ignore[no-any-return]

    def viterbi_decode(self, x: Tensor, lengths: Any = None, **inputs: Any) -> tuple[Tensor, Tensor]:
        """The most probable state path, (..., T) int64, and its log p(x, z), (...)."""
        found = self._call(hf.viterbi, x, lengths, **inputs)
        return found.states, found.log_joint

    def aic(self, x: Tensor, lengths: Any = None, **inputs: Any) -> Tensor:
        """As `BaseHMM.aic`; every weight of a network counts."""
        return self._criterion(2.0, self.forward(x, lengths, **inputs))

    def bic(self, x: Tensor, lengths: Any = None, **inputs: Any) -> Tensor:
        """As `BaseHMM.bic`; every weight of a network counts."""
        return self._criterion(log(self._num_frames(x, lengths)), self.forward(x, lengths, **inputs))

    def fit(
        self,
        data: Any,
        lengths: Any = None,
        *,
        num_iterations: int = 100,
        tolerance: float = 1e-2,
        init: Literal["kmeans", "keep"] = "kmeans",
        learning_rate: float = 1e-3,
        sample_weights: Any = None,
        callbacks: Sequence[Callback] = (),
        progress: bool = False,
        generator: torch.Generator | None = None,
        **inputs: Any,
    ) -> FitReport:
        """Learn all parameters from data by Adam, on -log p(x) a frame.

        Args:
            data: observations (..., T, D); a list of sequences (T_i, D); or batches, which can be iterated over again
                and again, as a DataLoader can: x, (x, lengths), (x, lengths, inputs) or `Batch`, one step each.
            lengths: (...) integers 1..T, with a tensor.
            num_iterations: passes over the data, at most.
            tolerance: nats; training stops when a pass gains less. 0 never stops.
            init: "kmeans" starts anew, see `initialize_from_data`; "keep" goes on from the parameters at hand.
            learning_rate: of Adam.
            sample_weights: (...), how often each sequence counts.
            callbacks, progress, generator: as `TrainableHMM.fit`'s.
            inputs: what the other methods take, such as `context`: tensors beside a tensor, lists beside a list, a
                dictionary in batches.

        Returns:
            `FitReport`: the log-likelihood of each pass, summed over its batches as they came, and at the end; the
            best is kept. With dropout each pass begins with one more, without gradients, for the likelihood of the
            whole networks: it is what the history holds, what convergence is seen by and what is kept.

        Raises, Warns: as `TrainableHMM.fit`.

        Example:
            >>> import torch
            >>> from pytorch_hmm import NeuralHMM
            >>> x, context = torch.randn(4, 30, 2), torch.randn(4, 30, 3)
            >>> hmm = NeuralHMM(2, obs_dim=2, context_dim=3, hidden_dim=8)
            >>> report = hmm.fit(x, context=context, num_iterations=5, tolerance=0, learning_rate=0.01)
            >>> report.history[-1] > report.history[0]
            True
        """
        options = {
            "num_iterations": num_iterations,
            "tolerance": tolerance,
            "init": init,
            "learning_rate": learning_rate,
            "sample_weights": sample_weights,
            "callbacks": callbacks,
            "progress": progress,
            "generator": generator,
        }
        return descend(self, data, lengths, inputs, **options)

    def _call(self, function: Callable[..., Any], x: Tensor, lengths: Any, **inputs: Any) -> Any:
        """A chain function of this model and these observations."""
        arguments = self.chain_arguments(x, lengths, **inputs)
        with full_precision(arguments["log_emission"]):
            return function(**arguments)

    def _of_parts(self, inputs: dict[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
        """Inputs of a list of sequences of these lengths, not yet padded: checked, and what follows from them."""
        for name, rank in self._frame_inputs.items():
            if inputs.get(name) is None:
                continue
            shapes = [tuple(torch.as_tensor(value).shape) for value in inputs[name]]
            is_by_frame = len(shapes[0]) > rank
            for i, (shape, length) in enumerate(zip(shapes, lengths, strict=True)):
                if len(shape) != rank + is_by_frame or (is_by_frame and shape[0] != length):
                    words = f"one for each of {length} frames" if is_by_frame else "one a sequence, as the first"
                    raise ValueError(f"{name}[{i}]: expected {words}, got shape {shape}")
        return inputs

    def _num_states_of(self, batch: Batch) -> Tensor | None:
        """How many states each of the sequences has, (N,); None where all have as many."""
        return None
