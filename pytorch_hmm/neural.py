"""HMMs whose transitions and emissions come from networks, with exact likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self, Unpack

import torch
from torch import Tensor, nn

import hmm_functional as hf
from hmm_functional._check import need_count
from hmm_functional.emissions import lagged

from ._check import lengths_like, log_of
from .ancestral import barred, draw_sequences
from .conditional import ConditionalHMM
from .data import Batch
from .emission import of_emission
from .gaussian import GaussianEmission
from .given import Given, checked_input
from .hmm import ChainOptions, Topology, chain_start
from .initialize import count_transitions, uniform_segments
from .networks import WORKSPACE, Kind, OwnNetwork, Sees, evaluate, kind_of, network_of
from .parametrize import LogProbabilities, Parametrized, full_precision, widened
from .student_t import StudentTEmission

_LAWS = {"gaussian": GaussianEmission, "student_t": StudentTEmission}
_MOST = 30.0
"""Of the log of a variance, what a network may add or take."""


class NeuralHMM(ConditionalHMM):
    """An HMM whose transitions and emissions are moved by networks, frame by frame; its likelihood is exact.

        log p(z_{t+1} given z_t) = log_softmax(log_transition + moves(f_t))
        x_t given z_t ~ N(means + scale * shift(f_t), covariances * exp(widening(f_t)) + variance_floor * scale^2)

    f_t is what is known beside frame t: the context and, with `autoregressive`, frames before it; never frame t. Each
    network has outputs of its own for every state. They start at 0, where the model is that of its free parameters
    `log_initial`, `log_transition`, `means`, `covariances`, but for the variance_floor * scale^2 that an emission
    network adds even there; without networks ("constant") it is a `GaussianHMM`.

    Args:
        num_states: K; with `state_dim` the most that an utterance may have.
        obs_dim: D.
        context_dim: C, of contexts (..., T, C), one a frame, or (..., C), one a sequence; None for none.
        hidden_dim: H, of networks.
        transition_network, emission_network: "constant", "linear", "mlp", "gru", or a module, see below. Default "mlp"
            where there is something to see, else "constant".
        topology: as `BaseHMM`'s; "left_to_right" starts in the first state, and stays or goes on by one: there
            `log_transition` is (K, 2), [stay, go on].
        has_end: whether the last state's going on ends the utterance, so that p(x) is also that of its length. Default
            with "left_to_right"; without an end the last state stays for ever, and any state may be the last seen.
        autoregressive: whether densities and moves depend on the frame before, or on how many.
        density: "gaussian" or "student_t", diagonal.
        state_dim: E, where states are no fixed set but come with each utterance, as vectors of an encoder; see below.
        variance_floor: least variance of what a network makes, in shares of `scale` squared.
        dropout: of pre-nets, in training; likelihoods are then of the thinned network, but those that `fit` reports.
        options: `initial` (not with `state_dim`), `transition` (probabilities), `self_loop`, `learnable`, `missing`, as
            `BaseHMM`; missing="nan" takes whole frames as unobserved, and does not go with `autoregressive`.

    Attributes:
        centre, scale: buffers (D,): networks see past frames as (x - centre) / scale, zeros before the first, and move
            means by multiples of scale. 0 and 1, or what `initialize_from_data` finds.
        workspace: elements of scratch that a piece of the time axis may use: more memory, fewer and larger pieces.

    Raises:
        ValueError: arguments that make no model.

    | network | outputs for state k |
    |---|---|
    | "linear" | W_k f_t, f_t = [context, x_{t-1}]: logistic regression of moves, linear of means and log variances |
    | "mlp" | W tanh(a(f_t) + b_k), a of two layers; past frames through a pre-net of two |
    | "gru" | the same behind GRUs over the context and over the pre-net; that of the context reads backwards, too, \
unless there is an end, which it would give away; a context of the whole sequence is one step to it |
    | module | what it makes of frames (..., T, C + lags * D), and of state vectors (..., K, E) where there are any |

    A module gives (..., T, K, O), with O = K logits, or 2 for [stay, go on]; of emissions D shifts, or D shifts and D
    widenings. It is called on pieces of the time axis and must treat frames one by one; what mixes frames belongs into
    the context, which takes gradients. `save` refuses models that hold one: no file holds its code.

    Every method takes by name what the model is conditioned on, `forward` the context also by position: `context`; with
    `state_dim` (left_to_right alone) `state_context` (..., K, E), and `state_lengths` (...), how many of these each
    utterance has, default all (in a list for `fit` its own). Such states share one free law and one row of
    `log_transition`.
    The move from frame t to t+1 is made by f_t, what is known beside the frame moved from; `InputDrivenHMM` and
    `hf.logistic_transitions` take the inputs of the step moved to, as Bengio and Frasconi do.

    Networks may run under autocast; densities and recursions run in float32 or wider. Training keeps O(B T (K + H))
    numbers: what is (B, T, K, H) or (B, T, K, D) is made in pieces of the time axis, and again for gradients.

    References: Bengio and Frasconi 1996 (input-output HMMs); Mehta et al. 2022 (neural HMMs for speech synthesis).

    Example:
        >>> import torch
        >>> hmm = NeuralHMM(num_states=5, obs_dim=3, context_dim=4, hidden_dim=16)
        >>> x, context = torch.randn(2, 50, 3), torch.randn(2, 50, 4)
        >>> hmm(x, [50, 31], context).shape
        torch.Size([2])
        >>> hmm.viterbi_decode(x, [50, 31], context=context)[0].shape
        torch.Size([2, 50])
    """

    _frame_inputs: ClassVar[dict[str, int]] = {"context": 1}
    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        num_states: int,
        obs_dim: int,
        context_dim: int | None = None,
        hidden_dim: int = 256,
        *,
        transition_network: Kind | nn.Module | None = None,
        emission_network: Kind | nn.Module | None = None,
        has_end: bool | None = None,
        autoregressive: bool | int = False,
        density: Literal["gaussian", "student_t"] = "gaussian",
        state_dim: int | None = None,
        variance_floor: float = 1e-4,
        dropout: float = 0.0,
        **options: Unpack[ChainOptions],
    ) -> None:
        self.topology = options.get("topology")
        is_forward = self.topology == "left_to_right"
        self.has_end = is_forward if has_end is None else bool(has_end)
        for name, value in (("has_end", self.has_end), ("state_dim", state_dim)):
            if value and not is_forward:
                raise ValueError(f"{name}: expected topology='left_to_right' with it, got {self.topology!r}")
        if state_dim is not None and options.get("initial") is not None:
            raise ValueError(
                "initial: expected None with state_dim, whose utterances start in the first of their states"
            )
        if density not in _LAWS:
            raise ValueError(f"density: expected 'gaussian' or 'student_t', got {density!r}")
        for name, share, most in (("variance_floor", variance_floor, torch.inf), ("dropout", dropout, 1.0)):
            if not 0 <= share < most:
                raise ValueError(f"{name}: expected a number from 0 and below {most:g}, got {share}")
        self.context_dim = None if context_dim is None else need_count("context_dim", context_dim, 1)
        self.state_dim = None if state_dim is None else need_count("state_dim", state_dim, 1)
        self.hidden_dim = need_count("hidden_dim", hidden_dim, 1)
        lags = int(autoregressive) if isinstance(autoregressive, bool) else autoregressive
        self.num_lags = need_count("autoregressive", lags, 0)
        if self.num_lags and options.get("missing") == "nan":
            raise ValueError("missing: expected 'raise' with autoregressive: a frame's density needs those before it")
        self.density, self.variance_floor, self.dropout = density, float(variance_floor), float(dropout)
        self.workspace = WORKSPACE
        super().__init__(num_states, (need_count("obs_dim", obs_dim, 1),), **options)
        self.emission: Any = _LAWS[density](self._num_laws(num_states), obs_dim)
        self.register_buffer("centre", torch.zeros(obs_dim))
        self.register_buffer("scale", torch.ones(obs_dim))
        sees = Sees(
            self.context_dim or 0,
            self.num_lags * obs_dim,
            self.num_states,
            self.state_dim,
            self.hidden_dim,
            self.dropout,
            is_causal=self.has_end,
        )
        exits = 2 if is_forward else self.num_states
        self.transition_network = network_of(transition_network, "transition_network", sees, (exits,))
        self.emission_network = network_of(emission_network, "emission_network", sees, (obs_dim, 2 * obs_dim))
        if self.transition_network is not None and not self.learnable:
            self.transition_network.requires_grad_(False)

    means = of_emission("means", "What a network shifts, (K, D), or (1, D) with `state_dim`; assignable.")
    covariances = of_emission("covariances", "Variances, (K, D), or (1, D) with `state_dim`; assignable.")
    obs_dim = of_emission("obs_dim", "D.")

    @property
    def degrees_of_freedom(self) -> Tensor:
        """(K,), or (1,) with `state_dim`, of a Student t; assignable."""
        self._need_degrees()
        found: Tensor = self.emission.degrees_of_freedom
        return found

    @degrees_of_freedom.setter
    def degrees_of_freedom(self, value: Any) -> None:
        self._need_degrees()
        self.emission.degrees_of_freedom = value

    def forward(self, x: Tensor, lengths: Any = None, context: Tensor | None = None, **inputs: Any) -> Tensor:
        """log p(x given what else is passed) of each sequence, (...), nats.

        Args:
            x: (..., T, D).
            lengths: (...) integers 1..T, for right-padded sequences; padding may hold anything.
            context: (..., T, C) or (..., C).
            inputs: `state_context`, `state_lengths`, as the class says.

        Raises:
            TypeError, ValueError: what is passed does not fit the model.

        Cost: O(B T K H (K + D)) for networks with hidden layers; then O(B T K^2), or O(B T K) where "left_to_right".
        """
        if context is not None:
            inputs["context"] = context
        return super().forward(x, lengths, **inputs)

    def chain_arguments(self, x: Tensor, lengths: Any = None, **inputs: Any) -> dict[str, Any]:
        """What every chain function of `hmm_functional` takes, as in `hf.viterbi_k_best(**arguments, k=3)`.

        Returns:
            log_initial (K,); log_transition (K, K), (..., T-1 or 1, K, K) or `Banded`; log_emission (..., T, K);
            lengths; with an end log_final (..., K), the last state's way there.
        """
        x, lengths, is_missing = self._prepare(x, lengths)
        given = self._given(x.shape[:-1], lengths, **inputs)
        past = None
        if self.num_lags:
            past = lagged((x - self.centre) / self.scale, self.num_lags).to(given.context.dtype)
        emission = self._scores(x, lengths, given, past)
        if is_missing is not None:
            emission = hf.mask_emission(emission, ~is_missing)
        if given.state_lengths is not None:
            is_state = torch.arange(given.num_states, device=x.device) < given.state_lengths[..., None]
            emission = emission.masked_fill(~is_state[..., None, :], -torch.inf)
        moves = self._moves(lengths, given, past)
        # those that differ from frame to frame, without that of the last
        slots = moves[..., :-1, :, :] if moves.ndim > 2 and moves.shape[-3] > 1 else moves
        found = {"log_initial": self.log_initial[: given.num_states], "log_emission": emission, "lengths": lengths}
        if self.topology != "left_to_right":
            return {**found, "log_transition": slots}
        if self.has_end:
            found["log_final"] = _log_final(moves[..., 1], lengths, given)
        return {**found, "log_transition": hf.Banded(slots.mT, (0, 1))}

    @torch.no_grad()
    def initialize_from_data(
        self,
        x: Tensor,
        lengths: Any = None,
        *,
        state_lengths: Any = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Set all parameters from observations, as a start for learning; networks made here give 0 again.

        `centre` and `scale` become mean and deviation of the features. Frames are given to states by cutting sequences
        into equal parts ("left_to_right") or by k-means; `means`, `covariances` and the chain are those of the parts.
        Structural zeros and fixed entries stay, and without `learnable` the chain; so do modules of the user's.

        Args:
            x: (..., T, D).
            lengths: (...) integers 1..T.
            state_lengths: (...), how many states each utterance has, with `state_dim`; default all.
            generator: source of randomness; default torch's global one.

        Returns:
            The module itself.
        """
        x, steps, ends, is_read = self._read(x, lengths)
        rng = torch.default_generator if generator is None else generator
        shape = steps.shape
        frames = x[is_read].double()
        deviations = frames.std(0, correction=0)
        self.centre.copy_(frames.mean(0))
        self.scale.copy_(deviations.where(deviations > 0, 1.0))
        if self.topology == "left_to_right":
            counts = torch.full_like(ends, self.num_states)
            if state_lengths is not None:
                counts = lengths_like(state_lengths, x, tuple(shape[:-1]), self.num_states, "state_lengths")
            states = uniform_segments(steps, ends, counts[..., None])
            moves = self._count_moves(states, ends)
        else:
            states = torch.zeros_like(steps)
            states[is_read] = self.emission.label(frames, self.num_states, rng)
            first, moves = count_transitions(states.where(is_read, -1).reshape(-1, shape[-1]), self.num_states)
            if self.learnable:
                self.initial_distribution.start(first)
        if self.learnable:
            self.transition_distribution.start(moves)
        self.emission.initialize(frames, self.laws_of(states[is_read]), rng)
        for network in (self.transition_network, self.emission_network):
            if network is not None:
                network.reset()
        return self

    @torch.no_grad()
    def sample(
        self, num_steps: int, batch_size: int | None = None, generator: torch.Generator | None = None, **inputs: Any
    ) -> tuple[Tensor, ...]:
        """States and observations drawn from the model, frame after frame.

        Args:
            num_steps: T; with an end the most, where sequences that go on are cut.
            batch_size: number of independent sequences.
            generator: source of randomness; default torch's global one.
            inputs: what the other methods take, such as `context` (batch_size, T, C) or (batch_size, C), without the
                first axis where `batch_size` is not given.

        Returns:
            (batch_size, T) int64 and (batch_size, T, D); with an end also lengths (batch_size,): T is then the longest,
            and -1 and 0 stand behind ends. Without the first axis where `batch_size` is not given.
        """
        num_steps = need_count("num_steps", num_steps, 1)
        batch = () if batch_size is None else (need_count("batch_size", batch_size, 1),)
        given = self._given((*batch, num_steps), None, **inputs)
        rng = torch.default_generator if generator is None else generator
        states, x, lengths = draw_sequences(self, given, num_steps, batch, rng)
        if not self.has_end:
            return states, x
        is_read = torch.arange(states.shape[-1], device=states.device) < lengths[..., None]
        return states.where(is_read, -1), x.where(is_read[..., None], 0.0), lengths

    def num_free_parameters(self) -> int:
        """Numbers that learning sets: free parameters, and weights of networks."""
        networks = (self.transition_network, self.emission_network)
        weights = (p for network in networks if network is not None for p in network.parameters() if p.requires_grad)
        return super().num_free_parameters() + sum(p.numel() for p in weights)

    def laws_of(self, states: Tensor) -> Tensor:
        """Which free law, and row of `log_transition`, each of the states has."""
        return states if self.state_dim is None else torch.zeros_like(states)

    def moved(self, outputs: Tensor, means: Tensor, covariances: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances (..., D) that the outputs (..., O) of an emission network make of free ones."""
        sizes = [self.obs_dim, outputs.shape[-1] - self.obs_dim]
        shift, widening = widened(outputs).split(sizes, -1)  # type: ignore[no-untyped-call]
        if sizes[1]:
            covariances = covariances * widening.clamp(-_MOST, _MOST).exp()
        means = means + self.scale * shift
        return means, covariances + self.variance_floor * self.scale.square()

    def _given(self, shape: tuple[int, ...], lengths: Tensor | None, **inputs: Any) -> Given:
        """What sequences of `shape` (..., T) are conditioned on, checked; padding is 0."""
        unknown = set(inputs) - {"context", "state_context", "state_lengths"}
        if unknown:
            raise TypeError(f"{min(unknown)}: expected context, state_context or state_lengths alone")
        context, states, ends = (inputs.get(name) for name in ("context", "state_context", "state_lengths"))
        dtype = self.initial_distribution.logits.dtype
        found = self.centre.new_zeros(1, 0, dtype=dtype)
        if self.context_dim is not None:
            found = checked_input("context", context, (self.context_dim,), shape, lengths).to(dtype)
            found = found if found.ndim == len(shape) + 1 else found[..., None, :]
        elif context is not None:
            raise ValueError("context: expected None without context_dim")
        if self.state_dim is None:
            if states is not None or ends is not None:
                raise ValueError("state_context, state_lengths: expected None without state_dim")
            return Given(found, None, None, self.num_states)
        width = states.shape[-2] if isinstance(states, Tensor) and states.ndim > 1 else 0
        if not 1 <= width <= self.num_states:
            shown = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
            words = f"(..., K, E) with K in 1..{self.num_states} and E = {self.state_dim}"
            raise ValueError(f"state_context: expected a tensor {words}, got {shown}")
        if ends is not None:
            ends = lengths_like(ends, self.centre, tuple(shape[:-1]), width, "state_lengths")
        sizes = (*shape[:-1], width)
        vectors = checked_input("state_context", states, (self.state_dim,), sizes, ends, is_by_frame=True)
        return Given(found, vectors.to(dtype), ends, width)

    def _emission_log_prob(self, x: Tensor) -> Tensor:
        """Of the free laws, (..., T, K), or (..., T, 1) with `state_dim`."""
        with full_precision(x):
            found: Tensor = self.emission.log_prob(x)
            return found

    def _scores(self, x: Tensor, lengths: Tensor | None, given: Given, past: Tensor | None) -> Tensor:
        """log p(x_t given z_t and f_t), (..., T, K)."""
        network = self.emission_network
        if network is None:
            return self._emission_log_prob(x).expand(*x.shape[:-1], given.num_states)
        frames, states = network.frames(given.context, past, lengths), network.states(given.states)
        family, values = self.emission.family(), self.emission.values()
        values = type(values)(*(x.expand(given.num_states, *x.shape[1:]) for x in values))

        def scores(outputs: Tensor, x: Tensor, *free: Tensor) -> Tensor:
            with full_precision(x):
                laws = type(values)(*free)
                means, covariances = self.moved(outputs, laws.means, laws.covariances)
                found: Tensor = family.log_prob(x, laws._replace(means=means, covariances=covariances))
                return found

        size = given.num_states, self.workspace, -2
        return evaluate(network, frames, states, scores, *size, by_frame=(x,), others=values)

    def _moves(self, lengths: Tensor | None, given: Given, past: Tensor | None) -> Tensor:
        """log p of moves, (K, O) or (..., T or 1, K, O); O is K, or 2 for [stay, go on]."""
        network, found = self.transition_network, self.log_transition
        if self.state_dim is not None:
            found = found.expand(given.num_states, -1)
        if network is not None:
            frames, states = network.frames(given.context, past, lengths), network.states(given.states)
            outputs = evaluate(network, frames, states, lambda x: x, given.num_states, self.workspace, -3)
            found = found + widened(outputs)
        if self.state_dim is not None and not self.has_end:
            is_last = given.is_last()
            found = barred(found, is_last if given.state_lengths is None else is_last[..., None, :])
        elif network is None:
            return found
        with full_precision(found):
            return found.log_softmax(-1)

    def _need_degrees(self) -> None:
        if self.density != "student_t":
            raise AttributeError(f"degrees_of_freedom: expected density='student_t' for it, got {self.density!r}")

    def _num_laws(self, num_states: int) -> int:
        return num_states if self.state_dim is None else 1

    def _chain_start(
        self, initial: Any, transition: Any, topology: Topology | None, self_loop: float | None
    ) -> tuple[Tensor, Tensor]:
        if topology != "left_to_right":
            return super()._chain_start(initial, transition, topology, self_loop)
        if transition is not None:
            raise ValueError("topology: expected either topology or transition, got both")
        # the smallest chain checks, and the largest is never written out
        _, two = chain_start(2, None, None, topology, self_loop)
        moves = two[:1].repeat(self._num_laws(self.num_states), 1)
        if not self.has_end and self.state_dim is None:
            moves[-1] = two[1].flip(0)
        start = torch.full((self.num_states,), -torch.inf, dtype=torch.float64)
        start[0] = 0.0
        if initial is not None:
            start = log_of("initial", initial, (self.num_states,), "(K,)")
        return start, moves

    def _make_moves(self, start: Tensor) -> LogProbabilities:
        words = "(K, K)" if self.topology != "left_to_right" else "(K, 2)"
        if self.state_dim is not None:
            words = "(1 row that all states share, 2)"
        return LogProbabilities(start, words, self.learnable)

    def _count_moves(self, states: Tensor, ends: Tensor) -> Tensor:
        """How often paths (..., T) stay in each state and go on from it, (K, 2), or (1, 2) with `state_dim`."""
        steps = torch.arange(states.shape[-1], device=states.device)
        is_inner = steps < ends[..., None] - 1
        goes_on = torch.cat([states.diff(dim=-1) > 0, torch.ones_like(is_inner[..., :1])], -1) | ~is_inner
        is_counted = steps < ends[..., None] if self.has_end else is_inner
        places = (self.laws_of(states) * 2 + goes_on)[is_counted]
        return torch.bincount(places, minlength=2 * self.emission.num_laws).reshape(-1, 2)

    def _of_parts(self, inputs: dict[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
        inputs = super()._of_parts(inputs, lengths)
        if self.state_dim is None or inputs.get("state_context") is None:
            return inputs
        counts = [len(states) for states in inputs["state_context"]]
        given = inputs.get("state_lengths")
        for i, (count, end) in enumerate(zip(counts, counts if given is None else given, strict=True)):
            if end > count:
                raise ValueError(f"state_lengths[{i}]: expected at most the {count} states of its own, got {int(end)}")
        return inputs if given is not None else {**inputs, "state_lengths": counts}

    def _num_states_of(self, batch: Batch) -> Tensor | None:
        if self.state_dim is None:
            return None
        given = self._given(batch.x.shape[:-1], batch.lengths, **(batch.inputs or {}))
        counts = batch.x.new_full(batch.x.shape[:-2], given.num_states, dtype=torch.int64)
        return (counts if given.state_lengths is None else given.state_lengths).reshape(-1)

    @property
    def _has_own_states(self) -> bool:  # type: ignore[override]
        return self.state_dim is None

    @property
    def _num_lags(self) -> int:  # type: ignore[override]
        return self.num_lags

    def _parametrized(self) -> dict[str, Parametrized]:
        return {**super()._parametrized(), **self.emission.parametrized()}

    def _arguments(self) -> dict[str, Any]:
        kinds: dict[str, Any] = {}
        for name in ("transition_network", "emission_network"):
            network = getattr(self, name)
            if isinstance(network, OwnNetwork):
                raise ValueError(
                    f"{name}: expected a network made here to save, got a {type(network.module).__name__}, whose code "
                    "no file holds; keep model.state_dict(), and load it into a model that is made anew"
                )
            kinds[name] = kind_of(network)
        own = {
            "obs_dim": self.obs_dim,
            "context_dim": self.context_dim,
            "hidden_dim": self.hidden_dim,
            **kinds,
            "has_end": self.has_end,
            "autoregressive": self.num_lags,
            "density": self.density,
            "state_dim": self.state_dim,
            "variance_floor": self.variance_floor,
            "dropout": self.dropout,
            "topology": "left_to_right" if self.topology == "left_to_right" else None,
        }
        return {**super()._arguments(), **own}

    def extra_repr(self) -> str:
        """The arguments that shape the model."""
        names = ("obs_dim", "context_dim", "state_dim", "topology", "has_end", "density")
        given = {**{name: getattr(self, name) for name in names}, "autoregressive": self.num_lags}
        return ", ".join([super().extra_repr(), *(f"{name}={value!r}" for name, value in given.items() if value)])


def _log_final(leaving: Tensor, lengths: Tensor | None, given: Given) -> Tensor:
    """log p of the end behind the last frame, (..., K), of log p(go on) (K,) or (..., T or 1, K)."""
    if leaving.ndim > 1:
        if lengths is None or leaving.shape[-2] == 1:
            leaving = leaving[..., -1, :]
        else:
            leaving = leaving.take_along_dim(lengths[..., None, None] - 1, -2)[..., 0, :]
    return leaving.where(given.is_last(), -torch.inf)
