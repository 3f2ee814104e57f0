"""Draws from a `NeuralHMM`, frame after frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .given import Given
from .networks import Network, join
from .parametrize import widened

if TYPE_CHECKING:
    from .neural import NeuralHMM


def draw_sequences(
    model: NeuralHMM, given: Given, num_steps: int, batch: tuple[int, ...], rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """States (*batch, T), frames (*batch, T, D) and lengths (*batch); T is below `num_steps` where all end."""
    made = (model.transition_network, model.emission_network)
    move_steps, shift_steps = (None if one is None else _Steps(one, given, batch) for one in made)
    is_last = given.is_last().expand(*batch, -1)
    past = given.context.new_zeros(*batch, 1, model.num_lags * model.obs_dim) if model.num_lags else None
    state = _draw(model.log_initial[: given.num_states].expand(*batch, -1), rng)
    lengths = torch.full(batch, num_steps, device=state.device)
    is_over = torch.zeros_like(lengths, dtype=torch.bool)
    states, frames = [], []
    for t in range(num_steps):
        moves = None if move_steps is None else move_steps(t, past, state)
        shifts = None if shift_steps is None else shift_steps(t, past, state)
        states.append(state)
        frames.append(_draw_frame(model, state, shifts, rng))
        if past is not None:
            newest = ((frames[-1] - model.centre) / model.scale).to(past)[..., None, :]
            past = torch.cat([newest, past], -1)[..., : past.shape[-1]]
        row = model.log_transition[model.laws_of(state)]
        row = row if moves is None else row + widened(moves)
        if model.topology != "left_to_right":
            state = _draw(row.log_softmax(-1), rng)
            continue
        is_at_last = is_last.take_along_dim(state[..., None], -1)[..., 0]
        goes_on = _draw((row if model.has_end else barred(row, is_at_last)).log_softmax(-1), rng)
        state = (state + goes_on).clamp_max(given.num_states - 1)
        if model.has_end:
            lengths = torch.where((goes_on == 1) & is_at_last & ~is_over, t + 1, lengths)
            is_over |= (goes_on == 1) & is_at_last
            if bool(is_over.all()):
                break
    return torch.stack(states, -1), torch.stack(frames, -2), lengths


def barred(logits: Tensor, is_last: Tensor) -> Tensor:
    """Logits (..., 2) of [stay, go on] where the last state stays."""
    goes_on = torch.tensor([False, True], device=logits.device)
    return logits.masked_fill(is_last[..., None] & goes_on, -torch.inf)


class _Steps:
    """A network, frame after frame."""

    def __init__(self, network: Network, given: Given, batch: tuple[int, ...]) -> None:
        self._network, self._shape = network, (*batch, given.num_states)
        self._context, self._states = network.encode(given.context), network.states(given.states)
        self._carry: Any = None

    def __call__(self, t: int, past: Tensor | None, state: Tensor) -> Tensor:
        """What it gives for the states (...) at frame t, (..., O)."""
        recalled, self._carry = self._network.recall(past, self._carry)
        context = self._context if self._context.shape[-2] == 1 else self._context[..., t : t + 1, :]
        found: Tensor = self._network(join(context, recalled), self._states)[..., 0, :, :]
        found = found.expand(*self._shape, -1)
        found = found.take_along_dim(state[..., None, None], -2)
        return found[..., 0, :]


def _draw_frame(model: NeuralHMM, states: Tensor, shifts: Tensor | None, rng: torch.Generator) -> Tensor:
    """Frames (..., D) of states (...): draws from the free law, moved and widened."""
    laws = model.laws_of(states)
    drawn: Tensor = model.emission.sample(laws, rng)
    if shifts is None:
        return drawn
    means: Tensor = model.means[laws]
    covariances: Tensor = model.covariances[laws]
    moved, widths = model.moved(shifts, means, covariances)
    return moved + (drawn - means) * (widths / covariances).sqrt()


def _draw(log_probs: Tensor, rng: torch.Generator) -> Tensor:
    """An entry of the last axis of (..., N), (...)."""
    chances = log_probs.exp().reshape(-1, log_probs.shape[-1]).to(rng.device)
    drawn = torch.multinomial(chances, 1, generator=rng)
    return drawn.reshape(log_probs.shape[:-1]).to(log_probs.device)
