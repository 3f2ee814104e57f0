"""Neural HMMs conditioned on phonemes, linguistic context and prosody."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from hmm_functional._check import need_count

from ._check import first, is_traced
from .given import Given, checked_input
from .networks import join
from .neural import NeuralHMM


class ContextualNeuralHMM(NeuralHMM):
    """A `NeuralHMM` whose context is phonemes, as learned vectors, beside linguistic and prosodic features.

    Args:
        num_states: K.
        obs_dim: D.
        phoneme_vocab_size: V; phonemes are integers 0..V-1.
        linguistic_context_dim, prosody_dim: numbers of such features, 0 for none.
        embedding_dim: size of a phoneme's vector.
        options: as `NeuralHMM`, but for `context_dim`.

    Every method takes by name `phonemes` integers (..., T), `linguistic` (..., T, L) and `prosody` (..., T, P), those
    that there are; each of them also without T, one a sequence.

    Attributes:
        embedding: the vectors, an `nn.Embedding`.

    Example:
        >>> import torch
        >>> hmm = ContextualNeuralHMM(5, 3, 40, linguistic_context_dim=6, prosody_dim=2, hidden_dim=16)
        >>> x, phonemes = torch.randn(2, 50, 3), torch.randint(40, (2, 50))
        >>> hmm(x, [50, 31], phonemes=phonemes, linguistic=torch.randn(2, 6), prosody=torch.randn(2, 50, 2)).shape
        torch.Size([2])
    """

    _frame_inputs: ClassVar[dict[str, int]] = {"phonemes": 0, "linguistic": 1, "prosody": 1}

    def __init__(
        self,
        num_states: int,
        obs_dim: int,
        phoneme_vocab_size: int,
        linguistic_context_dim: int = 0,
        prosody_dim: int = 0,
        *,
        embedding_dim: int = 64,
        **options: Any,
    ) -> None:
        need_count("phoneme_vocab_size", phoneme_vocab_size, 1)
        need_count("embedding_dim", embedding_dim, 1)
        self.linguistic_context_dim = need_count("linguistic_context_dim", linguistic_context_dim, 0)
        self.prosody_dim = need_count("prosody_dim", prosody_dim, 0)
        if "context_dim" in options:
            raise TypeError("context_dim: expected none, it follows from the other sizes")
        width = embedding_dim + linguistic_context_dim + prosody_dim
        super().__init__(num_states, obs_dim, width, **options)
        self.embedding = nn.Embedding(phoneme_vocab_size, embedding_dim)

    def num_free_parameters(self) -> int:
        """Numbers that learning sets: free parameters, weights of networks, and vectors of phonemes."""
        return super().num_free_parameters() + self.embedding.weight.numel() * self.embedding.weight.requires_grad

    def _given(self, shape: tuple[int, ...], lengths: Tensor | None, **inputs: Any) -> Given:
        if "context" in inputs:
            raise TypeError("context: expected phonemes, linguistic and prosody in its place")
        phonemes = checked_input("phonemes", inputs.pop("phonemes", None), (), shape, lengths)
        size = self.embedding.num_embeddings
        if not is_traced(phonemes):
            is_bad = (phonemes < 0) | (phonemes >= size)
            if is_bad.any():
                at = first(is_bad)
                raise ValueError(f"phonemes: expected integers 0..{size - 1}, got {int(phonemes[at])} at {at}")
        parts = [self.embedding(phonemes.long())]
        for name, width in (("linguistic", self.linguistic_context_dim), ("prosody", self.prosody_dim)):
            value = inputs.pop(name, None)
            if width:
                parts.append(checked_input(name, value, (width,), shape, lengths).to(parts[0].dtype))
            elif value is not None:
                raise ValueError(f"{name}: expected None in a model without, got {type(value).__name__}")
        context = join(*(x if x.ndim > len(shape) else x[..., None, :] for x in parts))
        context = context if context.shape[-2] == shape[-1] else context[..., 0, :]
        return super()._given(shape, lengths, context=context, **inputs)

    def _arguments(self) -> dict[str, Any]:
        found = super()._arguments()
        del found["context_dim"]
        own = {
            "phoneme_vocab_size": self.embedding.num_embeddings,
            "linguistic_context_dim": self.linguistic_context_dim,
            "prosody_dim": self.prosody_dim,
            "embedding_dim": self.embedding.embedding_dim,
        }
        return {**found, **own}
