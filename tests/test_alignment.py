"""Forced alignment against every alignment written out, and what it says of wrong input."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import hmm_functional as hf
from hmm_functional.transition import as_dense
from pytorch_hmm import ForcedAligner, GaussianHMM
from tests.helpers.alignments import Alignments
from tests.helpers.backends import LIBRARIES, PUBLIC_LIBRARIES

ALT, SKIP, ANY = hf.Alternatives, hf.Skippable, hf.Wildcard


def tok(*columns):
    return ("token", *columns)


# The transcript as users write it, and as the oracle takes it; columns 0..4, symbol 0 is the silence
READINGS = {
    "words": ([[3, 1], [2]], [[tok(3), tok(1)], [tok(2)]], True),
    "tokens": ([3, 1, 3], [tok(3), tok(1), tok(3)], False),
    "alternatives": (
        [[3, 1], ALT([[2], [2, 4]], [0.7, 0.2])],
        [[tok(3), tok(1)], ("or", [[tok(2)], [tok(2), tok(4)]], [0.7, 0.2])],
        True,
    ),
    "gaps": (
        [[3, SKIP(1, 0.3)], SKIP([2, 4], 0.25), [1]],
        [[tok(3), ("skip", tok(1), 0.3)], ("skip", [tok(2), tok(4)], 0.25), [tok(1)]],
        True,
    ),
    "all gaps": ([SKIP([3]), SKIP([2, 1])], [("skip", [tok(3)], None), ("skip", [tok(2), tok(1)], None)], True),
    "wildcards": (
        [[3], ANY(-0.5), [2, ANY(0.2, False, 2)]],
        [[tok(3)], ("any", -0.5, 1), [tok(2), ("free", 0.2, 2)]],
        True,
    ),
}
CASES = [(name, place) for name in READINGS for place in (None, "ends", "words", "tokens")]


def score(graph, emission, **options):
    states = hf.state_scores(graph, emission)
    return hf.log_likelihood(graph.log_initial, graph.log_transition, states, log_final=graph.log_final, **options)


def build(name, place, emission, *, self_loop=None):
    written, plain, are_words = READINGS[name]
    topology = hf.Topology(silence=None if place is None else 0, silence_at=place or "words", self_loop=self_loop)
    oracle = Alignments(
        np.asarray(emission, np.float64),
        plain,
        are_words=are_words,
        silence=None if place is None else [0],
        places=place or "words",
        self_loop=self_loop,
    )
    return written, topology, oracle


def assert_equals_oracle(found, oracle, tolerance):
    tokens, labels = oracle.tokens[oracle.best], oracle.labels[oracle.best]
    np.testing.assert_array_equal(found.token_index, tokens)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.log_joint, float(oracle.weights.max()), rtol=0, atol=tolerance)
    for n in range(found.start.shape[-1]):
        frames = np.flatnonzero(tokens == n)
        if not len(frames):
            assert found.start[n] == found.end[n] == -1
            assert found.confidence[n] == found.start_deviation[n] == 0
            continue
        assert (found.start[n], found.end[n]) == (frames[0], frames[-1] + 1)
        start, end = oracle.deviations(n)
        wanted = [oracle.token_posteriors(n)[frames].mean(), *start, *end]
        got = [x[n] for x in found[5:10]]
        np.testing.assert_allclose(np.array(got, np.float64), np.array(wanted, np.float64), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("name", "place"), CASES)
def test_graphs_stand_for_all_readings_and_alignments(name, place):
    emission = np.random.default_rng(len(name)).normal(size=(6, 5))
    for self_loop in (None, (0.1, 0.2, 0.3, 0.4, 0.5)):
        written, topology, oracle = build(name, place, emission, self_loop=self_loop)
        graph = hf.transcript_graph(written, like=emission, topology=topology)
        np.testing.assert_allclose(score(graph, emission), float(oracle.log_likelihood), rtol=0, atol=1e-12)
        assert_equals_oracle(hf.forced_align(emission, graph), oracle, 1e-11)


@pytest.mark.parametrize(
    ("library", "name"), [*((library, "wildcards") for library in PUBLIC_LIBRARIES), ("torch", "gaps")]
)
def test_libraries_agree_with_enumeration(library, name):
    emission = np.random.default_rng(3).normal(size=(6, 5))
    own = LIBRARIES[library]
    written, topology, oracle = build(name, "words", emission)
    scores = own.array(emission)
    graph = hf.transcript_graph(written, like=scores, topology=topology)

    def align(scores):
        return hf.forced_align(scores, graph)

    found = (jax.jit(align) if library == "jax" else align)(scores)
    assert_equals_oracle(type(found)(*(own.numpy(x) for x in found)), oracle, 1e-11)


def test_float32_boundaries_lose_nothing_far_away():
    """Posteriors of far boundaries are products, not differences: a certain boundary is certain in float32."""
    frames = torch.arange(4000)
    scores = torch.where((frames[:, None] // 2000) == torch.arange(2), 0.0, -30.0)
    found = hf.forced_align(scores, [0, 1])
    assert found.start.tolist() == [0, 2000]
    assert float(found.start_deviation[1]) < 1e-5
    assert abs(float(found.start_mean[1]) - 2000) < 1e-3


@pytest.mark.parametrize("place", [None, "ends", "words", "tokens"])
@pytest.mark.parametrize("states", [1, 2, (1, 2, 1, 3, 1)])
@pytest.mark.parametrize("is_tied", [False, True])
def test_plain_and_general_compilers_agree(place, states, is_tied):
    width = 5 if is_tied else (5 * states if isinstance(states, int) else sum(states))
    emission = np.random.default_rng(0).normal(size=(12, width))
    topology = hf.Topology(
        states=states,
        is_tied=is_tied,
        silence=None if place is None else 3,
        silence_at=place or "words",
        self_loop=0.3,
    )
    transcripts = [[1, 4, 1], [4]]
    general = hf.stack_graphs([hf.transcript_graph(t, like=emission, topology=topology) for t in transcripts])
    plain = hf.token_graph(transcripts, like=emission, topology=topology)
    np.testing.assert_array_equal(plain.labels, general.labels)
    np.testing.assert_array_equal(plain.token_index, general.token_index)
    for name in ("log_initial", "log_final"):
        np.testing.assert_allclose(getattr(plain, name), getattr(general, name), rtol=0, atol=1e-12)
    dense = [as_dense(graph.log_transition) for graph in (plain, general)]
    np.testing.assert_allclose(*dense, rtol=0, atol=1e-12)
    np.testing.assert_allclose(score(plain, emission), score(general, emission), rtol=0, atol=1e-12)


def test_symbols_own_their_columns_and_least_durations():
    graph = hf.token_graph([1, 0, 2], like=np.zeros((1, 6)), topology=hf.Topology(states=[1, 2, 3]))
    assert graph.labels.tolist() == [1, 2, 0, 3, 4, 5]
    tied = hf.token_graph([1, 0], like=np.zeros((1, 3)), topology=hf.Topology(states=3, is_tied=True))
    assert tied.labels.tolist() == [1, 1, 1, 0, 0, 0]
    found = hf.forced_align(np.array([[0.0, 9.0, 0.0]] * 8), [1, 0], topology=hf.Topology(states=3, is_tied=True))
    assert (found.end - found.start).tolist() == [5, 3]


def test_batches_of_transcripts_equal_single_ones():
    rng = np.random.default_rng(1)
    emission = torch.from_numpy(rng.normal(size=(3, 9, 5)))
    lengths = [9, 6, 7]
    written = [READINGS[name][0] for name in ("gaps", "words", "alternatives")]
    topology = hf.Topology(silence=0)
    graphs = [hf.transcript_graph(transcript, like=emission, topology=topology) for transcript in written]
    together = hf.forced_align(emission, hf.stack_graphs(graphs), lengths=lengths)
    for i, (graph, length) in enumerate(zip(graphs, lengths, strict=True)):
        alone = hf.forced_align(emission[i, :length], graph)
        for name, one, all_ in zip(alone._fields, alone, (x[i] for x in together), strict=True):
            rest = all_[..., one.shape[-1] :] if one.ndim else all_[None][:0]
            same = all_[..., : one.shape[-1]] if one.ndim else all_
            torch.testing.assert_close(same, one, rtol=0, atol=1e-11, msg=name)
            assert ((rest == -1) | (rest == 0)).all()


def test_many_lengths_of_transitions_make_sparse_graphs():
    emission = np.random.default_rng(2).normal(size=(30, 5))
    ways = [[1] * (n + 1) for n in range(20)]
    graph = hf.transcript_graph([[2], ALT(ways), [3]], like=emission)
    assert isinstance(graph.log_transition, hf.Sparse)
    plain = [hf.transcript_graph([[2], way, [3]], like=emission) for way in ways]
    wanted = np.logaddexp.reduce([score(one, emission) for one in plain])
    np.testing.assert_allclose(score(graph, emission), wanted, rtol=0, atol=1e-11)
    stacked = hf.stack_graphs([graph, plain[0]])
    np.testing.assert_allclose(score(stacked, emission), [wanted, score(plain[0], emission)], rtol=0, atol=1e-11)
    best = hf.forced_align(emission, graph, posteriors=False)
    np.testing.assert_allclose(
        best.log_joint, max(hf.forced_align(emission, one, posteriors=False).log_joint for one in plain)
    )
    assert np.isnan(best.confidence).all()


def test_boundary_posteriors_are_those_of_all_alignments():
    emission = np.random.default_rng(4).normal(size=(6, 5))
    written, topology, oracle = build("gaps", "words", emission)
    found = hf.boundary_posteriors(emission, hf.transcript_graph(written, like=emission, topology=topology))
    for n in range(5):
        said = oracle.probabilities @ (oracle.tokens == n).any(1)
        start, end = oracle.boundaries(n) * said
        np.testing.assert_allclose(found.start[:, n], np.array(start[:-1], np.float64), rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.end[:, n], np.array(end[1:], np.float64), rtol=0, atol=1e-12)


def test_posterior_method_has_most_expected_frames():
    rng = np.random.default_rng(5)
    for _ in range(20):
        emission = 2 * rng.normal(size=(7, 4))
        oracle = Alignments(emission, [tok(1), tok(2), tok(1)], are_words=False, silence=[0], places="tokens")
        # a plain sequence's alignments tell its states: which silence a silent frame is follows from the last token
        before = np.maximum.accumulate(oracle.tokens, axis=1)
        states = np.where(oracle.tokens >= 0, 2 * oracle.tokens + 1, 2 * before + 2)
        gain = np.stack([oracle.probabilities @ (states == s) for s in range(7)], axis=1)
        expected = gain[np.arange(7), states].sum(1)
        found = hf.forced_align(
            emission, [1, 2, 1], topology=hf.Topology(silence=0, silence_at="tokens"), method="posterior"
        )
        best = int(np.argmax(expected))
        np.testing.assert_array_equal(found.token_index, oracle.tokens[best])
        np.testing.assert_allclose(found.log_joint, float(oracle.weights[best]), rtol=0, atol=1e-11)


def test_gradients_of_scores_and_of_what_is_said_of_tokens():
    graph = hf.transcript_graph(
        [[1], SKIP([2]), [0, 1]], like=torch.zeros(1, 3, dtype=torch.float64), topology=hf.Topology(silence=0)
    )
    emission = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 3))).requires_grad_()
    is_there = hf.forced_align(emission.detach(), graph).start >= 0

    def values(emission):
        found = hf.forced_align(emission, graph)
        return found.log_joint, *(x[is_there] for x in found[5:10])

    assert torch.autograd.gradcheck(values, (emission,))
    assert torch.autograd.gradcheck(lambda x: hf.boundary_posteriors(x, graph).start, (emission,))
    (gradient,) = torch.autograd.grad(hf.forced_align(emission, [1, 2]).log_joint, emission)
    torch.testing.assert_close(gradient.sum(1), torch.ones(6, dtype=torch.float64))


def test_traced_calls_agree():
    rng = np.random.default_rng(0)
    emission, targets = rng.normal(size=(2, 7, 3)), np.array([[1, 2, 0], [2, 2, 1]])
    lengths, numbers = np.array([7, 4]), np.array([3, 2])
    topology = hf.Topology(states=[1, 1, 1], silence=0, silence_at="tokens")

    def align(emission, targets, lengths, numbers):
        return hf.forced_align(emission, targets, lengths=lengths, target_lengths=numbers, topology=topology)

    arrays = (emission, targets, lengths, numbers)
    wanted = align(*arrays)
    tensors = [torch.from_numpy(x) for x in arrays]
    compiled = torch.compile(align, fullgraph=True, backend="eager")(*tensors)
    mapped = torch.func.vmap(align)(*tensors)
    jitted = jax.jit(align)(*map(jnp.asarray, arrays))
    for found in (compiled, mapped, jitted):
        for name, want, got in zip(wanted._fields, wanted, found, strict=True):
            np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=1e-12, err_msg=name)


def test_padding_and_nan_stay_where_they_are():
    emission = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 7, 3)))
    wanted = hf.forced_align(emission, [1, 2], lengths=[7, 4])
    dirty = emission.clone()
    dirty[1, 4:] = torch.nan
    for want, got in zip(wanted, hf.forced_align(dirty, [1, 2], lengths=[7, 4]), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    dirty = emission.clone()
    dirty[0, 3, 1] = torch.nan
    found = hf.forced_align(dirty, [1, 2], lengths=[7, 4])
    assert found.log_joint[0].isnan()
    assert found.confidence[0].isnan().all()
    assert (found.labels[0] == -1).all()
    assert (found.start[0] == -1).all()
    for want, got in zip(wanted, found, strict=True):
        torch.testing.assert_close(got[1], want[1], rtol=0, atol=1e-12)


def test_what_is_impossible_but_long_enough_is_no_error():
    scores = torch.full((5, 3), -torch.inf)
    found = hf.forced_align(scores, [1, 2])
    assert found.log_joint == -torch.inf
    assert (found.labels == -1).all()
    assert (found.start == -1).all()
    assert (found.confidence == 0).all()


ERRORS = [
    (lambda e: hf.forced_align(e, [1, 2] * 6), ValueError, r"needs at least 12 frames, log_emission has 8"),
    (
        lambda e: hf.forced_align(e[None].expand(2, -1, -1), [[1], [1] * 9], lengths=[8, 7]),
        ValueError,
        r"of sequence 1 needs at least 9 frames, log_emission has 7",
    ),
    (lambda e: hf.forced_align(e, [1, 5]), ValueError, r"targets: expected values in 0\.\.4, got 1\.\.5"),
    (lambda e: hf.forced_align(e, [1.0]), TypeError, "targets: expected integers"),
    (lambda e: hf.forced_align(e, []), ValueError, "targets: expected at least one token"),
    (lambda e: hf.forced_align(e, [[1, 2], 3]), ValueError, "targets: .* different depths"),
    (lambda e: hf.forced_align(e, [1], target_lengths=2), ValueError, r"target_lengths: expected values in 1\.\.1"),
    (lambda e: hf.forced_align(e, [1], method="best"), ValueError, "method: .*'viterbi', 'posterior'"),
    (lambda e: hf.forced_align(e, [1], topology=hf.Topology(states=2)), ValueError, "a multiple of 2, got 5"),
    (lambda e: hf.forced_align(e, [1], topology=hf.Topology(states=[1, 2])), ValueError, "expected 3 columns"),
    (lambda e: hf.forced_align(e, [1], topology=hf.Topology(silence=7)), ValueError, r"silence: .*0\.\.4, got 7"),
    (lambda e: hf.forced_align(e.long(), [1]), TypeError, "log_emission: expected a floating-point dtype"),
    (lambda e: hf.forced_align(e, hf.token_graph([1], like=e), target_lengths=1), ValueError, "beside a graph"),
    (lambda e: hf.state_scores(hf.token_graph([4], like=e), e[:, :3]), ValueError, "a column for each label"),
    (lambda e: hf.Topology(silence_at="word"), ValueError, "silence_at: .*'words'"),
    (lambda e: hf.Topology(self_loop=1.5), ValueError, "self_loop"),
    (lambda e: hf.Topology(self_loop="a"), TypeError, "self_loop: expected a number, or one a column, got 'a'"),
    (lambda e: hf.forced_align(e, [1], beam="wide"), TypeError, "beam: expected a number, got str"),
    (lambda e: hf.forced_align(e, [1], beam=torch.ones(1)), TypeError, "beam: expected a number, got Tensor"),
    (lambda e: hf.Topology(states=0), ValueError, "states"),
    (lambda e: hf.transcript_graph([[1], "b"], like=e), TypeError, r"transcript\[1\]: expected an integer"),
    (lambda e: hf.transcript_graph([[1], [9]], like=e), ValueError, r"symbols 0\.\.4, got 9 as token 1"),
    (lambda e: hf.transcript_graph([[1], ALT([[2], []])], like=e), ValueError, r"transcript\[1\]: .*Skippable"),
    (lambda e: hf.transcript_graph([], like=e), ValueError, "at least one token, or a silence"),
    (lambda e: ALT([[1]], [0.5, 0.5]), ValueError, "probabilities: expected 1"),
    (lambda e: SKIP(1, 1.5), ValueError, "probability"),
    (lambda e: hf.stack_graphs([]), ValueError, "graphs: expected at least one"),
    (lambda e: hf.stack_graphs([hf.token_graph([[1]], like=e)]), ValueError, "without batch axes"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_say_what_was_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(8, 5))


# With a beam


def spoken(rng, num_tokens, frames_each, symbols=12):
    """Scores in which tokens are heard, and the tokens."""
    targets = rng.integers(1, symbols, num_tokens)
    heard = np.repeat(targets, rng.integers(1, 2 * frames_each, num_tokens))
    scores = rng.normal(size=(len(heard), symbols))
    scores[np.arange(len(heard)), heard] += 4
    return scores, targets


def test_an_infinite_beam_is_exact_in_pieces():
    rng = np.random.default_rng(0)
    topology = hf.Topology(silence=0, silence_at="tokens", self_loop=0.7)
    for num_tokens in (3, 90):
        emission = torch.from_numpy(rng.normal(size=(2, 450, 12)))
        targets, numbers, lengths = rng.integers(1, 12, (2, num_tokens)), [num_tokens, 2], [450, 130]
        options = {"target_lengths": numbers, "lengths": lengths, "topology": topology}
        whole = hf.forced_align(emission, targets, posteriors=False, **options)
        pieces = hf.forced_align(emission, targets, beam=np.inf, **options)
        for name in ("labels", "token_index", "start", "end"):
            torch.testing.assert_close(getattr(pieces, name), getattr(whole, name), rtol=0, atol=0)
        torch.testing.assert_close(pieces.log_joint, whole.log_joint, rtol=0, atol=1e-10)
        assert (pieces.pruned == 0).all()
        assert (pieces.log_bound == -torch.inf).all()
    ways = ALT([[1] * (n + 1) for n in range(20)])
    graph = hf.transcript_graph([[2], ways, SKIP([3, ANY()]), [4]] * 3, like=emission, topology=topology)
    assert isinstance(graph.log_transition, hf.Sparse)
    whole, pieces = (hf.forced_align(emission, graph, **x) for x in ({"posteriors": False}, {"beam": np.inf}))
    torch.testing.assert_close(pieces.labels, whole.labels, rtol=0, atol=0)


@pytest.mark.parametrize("num_tokens", [300, 299, 295])
def test_an_infinite_beam_is_exact_where_frames_are_hardly_enough(num_tokens):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(5, (num_tokens,), generator=generator)
    whole, pieces = (hf.forced_align(scores, targets, beam=beam).log_joint for beam in (None, np.inf))
    torch.testing.assert_close(pieces, whole)


def test_a_beam_says_what_it_pruned_and_is_never_silently_worse():
    rng = np.random.default_rng(1)
    was_wrong = was_pruned = 0
    for i in range(8):
        scores, targets = spoken(rng, 120, 6)
        if i % 2:
            scores = rng.normal(size=(700, 12))
        exact = hf.forced_align(scores, targets, posteriors=False)
        for beam in (5.0, 60.0, 300.0):
            found = hf.forced_align(scores, targets, beam=beam)
            is_wrong = not found.log_joint > exact.log_joint - 1e-9
            assert found.log_joint <= exact.log_joint + 1e-9
            assert max(found.log_joint, found.log_bound) >= exact.log_joint - 1e-9
            assert (found.pruned > 0) == (found.log_bound > -np.inf) or found.log_joint == -np.inf
            was_wrong += is_wrong
            was_pruned += found.pruned > 0
            if found.log_joint > -np.inf:
                given = hf.forced_align(scores, targets, posteriors=False)
                assert (found.token_index == given.token_index).all() or is_wrong
    assert was_wrong  # there was something to report
    assert was_pruned > was_wrong


def test_what_a_beam_pruned_is_bounded_beside_wildcards_of_both_kinds():
    """Frames whose best column is no token's: a relative wildcard gains it, whatever stands beside it."""
    rng = np.random.default_rng(0)
    was_wrong = 0
    for _ in range(6):
        scores = torch.tensor(rng.normal(0.0, 3.0, size=(400, 3)))
        scores[130:, 2] += 20.0 * rng.uniform()
        transcript = [[1], ANY(), ANY(score=rng.normal(), is_relative=False), [1]]
        graph = hf.transcript_graph(transcript, like=scores)
        exact = hf.forced_align(scores, graph, posteriors=False).log_joint
        for beam in (0.0, 5.0):
            found = hf.forced_align(scores, graph, beam=beam)
            assert max(found.log_joint, found.log_bound) >= exact - 1e-9
            was_wrong += bool(found.log_joint < exact - 1e-9)
    assert was_wrong  # there was something to bound


def test_beam_keeps_gradients_and_errors():
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=(300, 5))).requires_grad_()
    found, whole = hf.forced_align(scores, [1, 2, 3], beam=np.inf), hf.forced_align(scores, [1, 2, 3])
    (one,), (other,) = (torch.autograd.grad(x.log_joint, scores) for x in (found, whole))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    with pytest.raises(ValueError, match="needs at least 400 frames, log_emission has 300"):
        hf.forced_align(scores, [1] * 400, beam=10.0)
    with pytest.raises(ValueError, match="beam: expected none where posteriors"):
        hf.forced_align(scores, [1], beam=10.0, posteriors=True)
    with pytest.raises(ValueError, match="beam: expected at least 0"):
        hf.forced_align(scores, [1], beam=-1.0)
    with pytest.raises(ValueError, match="beam: expected none in a traced call"):
        jax.jit(lambda x: hf.forced_align(x, [1], beam=1.0))(jnp.zeros((3, 2)))
    dirty = scores.detach().clone()
    dirty[250, 2] = torch.nan
    assert hf.forced_align(dirty, [1, 2, 3], beam=50.0).log_joint.isnan()


# The module


def aligner(**options):
    lexicon = {"ab": "a b", "c": [["c"], ["c", "c"]]}
    return ForcedAligner(["sil", "a", "b", "c"], lexicon=lexicon, silence="sil", frame_shift=0.01, **options)


def path_scores(frames):
    return torch.where(torch.tensor(frames)[:, None] == torch.arange(4), 0.0, -20.0)


def test_aligner_names_tokens_silences_and_words():
    found = aligner(time_offset=0.5).align(path_scores([0, 0, 1, 1, 2, 0, 3, 3, 3]), ["ab", "c"])
    rows = [(s.label, s.token, s.word, s.start, s.end) for s in found.segments]
    # one long c or two of them say the same frames equally well; ties go to the lowest predecessor
    assert rows[:4] == [("sil", None, None, 0, 2), ("a", 0, 0, 2, 4), ("b", 1, 0, 4, 5), ("sil", None, None, 5, 6)]
    assert [(w.label, w.start, w.end, w.start_time, w.end_time) for w in found.words] == [
        ("ab", 2, 5, 0.52, 0.55),
        ("c", 6, 9, 0.56, 0.59),
    ]
    assert all(0.99 < s.confidence <= 1 + 1e-6 for s in found.segments[:4])
    assert all(s.start_deviation < 1e-4 for s in found.segments[:4])
    assert found.segments[0].start == 0
    assert found.segments[-1].end == 9


def test_aligner_takes_batches_modules_and_trains():
    model = aligner()
    scores = torch.stack([path_scores([1, 1, 2, 0, 0, 0]), path_scores([0, 3, 3, 3, 0, 0])])
    both = model.align(scores, [["ab"], ["c"]], lengths=[3, 6])
    for one, i, length, words in zip(both, (0, 1), (3, 6), (["ab"], ["c"]), strict=True):
        alone = model.align(scores[i, :length], words)
        assert [s[:5] for s in one.segments] == [s[:5] for s in alone.segments]
        assert one.log_joint == pytest.approx(alone.log_joint, abs=1e-5)
    hmm = GaussianHMM(4, 2)
    features = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    trained = ForcedAligner(emission=hmm, silence=0)
    trained(features, [1, 2, 3]).backward()
    assert all(p.grad is not None for p in hmm.emission.parameters())
    assert trained.align(features, [1, 2, 3]).segments[-1].end == 8


def test_aligner_takes_one_length_and_nan():
    scores = path_scores([1, 1, 2, 0, 0, 0])
    alone = aligner().align(scores[:3], ["ab"])
    for length in (3, [3], torch.tensor([3]), np.array(3)):
        assert aligner().align(scores, ["ab"], lengths=length).segments == alone.segments
        assert aligner()(scores, ["ab"], lengths=length).shape == ()
    scores[1] = np.nan
    found = aligner().align(scores, ["ab"])
    assert (found.segments, found.words, np.isnan(found.log_joint)) == ([], [], True)


def test_aligner_errors_name_the_word():
    with pytest.raises(ValueError, match=r"transcript\[1\]: unknown word 'cd'"):
        aligner().align(path_scores([1, 2]), ["ab", "cd"])
    with pytest.raises(ValueError, match=r"transcript\[0\]\[1\]: unknown symbol 'x'; known: sil, a, b, c"):
        aligner().align(path_scores([1, 2]), [["a", "x"]])
    with pytest.raises(ValueError, match=r"^transcripts: needs at least 2 frames, x has 1$"):
        aligner().align(path_scores([1]), ["ab"])
    with pytest.raises(ValueError, match=r"^transcripts\[1\]: needs at least 2 frames, x\[1\] has 1$"):
        aligner().align(torch.zeros(2, 3, 4), [["ab"], ["ab"]], lengths=[3, 1])
    with pytest.raises(TypeError, match=r"transcripts: expected a list of words, got the text 'ab c'; pass its .split"):
        aligner().align(torch.zeros(5, 4), "ab c")
    with pytest.raises(TypeError, match=r"transcripts\[1\]: expected a list of words, got the text 'c'"):
        aligner().align(torch.zeros(2, 5, 4), [["ab"], "c"])
    with pytest.raises(ValueError, match=r"lengths: expected one number, for one sequence, got shape \(2,\)"):
        aligner().align(torch.zeros(5, 4), ["ab"], lengths=[5, 5])
    with pytest.raises(ValueError, match="transcripts: expected 2, one an utterance, got 1"):
        aligner().align(torch.zeros(2, 5, 4), [["ab"]])
    with pytest.raises(ValueError, match="frame_shift"):
        ForcedAligner(frame_shift=0)
    for said, error, message in (
        ([], ValueError, ": the lexicon has no pronunciation of it"),
        (["a", "x"], ValueError, r"\[1\]: unknown symbol 'x'; known: sil, a$"),
        ([["a"], ["a", "x"]], ValueError, r"\[1\]: unknown symbol 'x'"),
        ([["a"], [1, 2]], ValueError, r": expected a symbol in 0\.\.1, got 2"),
        (1, TypeError, ": expected a list of symbols, got int"),
    ):
        with pytest.raises(error, match=rf"lexicon\['e'\]{message}"):
            ForcedAligner(["sil", "a"], lexicon={"a": "a", "e": said})
    with pytest.raises(TypeError, match=r"silence: expected a symbol, a name or a number, got 1\.5"):
        ForcedAligner(silence=1.5)


def test_self_loops_are_as_exact_as_the_emissions() -> None:
    graph = hf.token_graph([0], like=torch.zeros(2, 1, dtype=torch.float64), topology=hf.Topology(self_loop=0.3))
    words = hf.transcript_graph([0], like=torch.zeros(2, 1, dtype=torch.float64), topology=hf.Topology(self_loop=0.3))
    for made in (graph, words):
        assert float(made.log_final[0]) == pytest.approx(math.log(0.7), abs=1e-15)


@pytest.mark.parametrize("states", [2, [1, 2]])
def test_an_empty_batch_is_aligned(states: Any) -> None:
    topology = hf.Topology(states=states, is_tied=True)
    found = hf.forced_align(torch.zeros(0, 4, 2), torch.zeros(0, 1, dtype=torch.int64), topology=topology)
    assert (found.labels.shape, found.confidence.shape) == ((0, 4), (0, 1))
    found = hf.ctc_align(torch.zeros(0, 4, 2), torch.ones(0, 1, dtype=torch.int64), posteriors=True)
    assert found.start.shape == (0, 1)


def test_a_transcript_of_a_batch_may_be_silence_alone() -> None:
    found = hf.forced_align(torch.zeros(2, 4, 2), [[], [1]], topology=hf.Topology(silence=0))
    assert found.token_index[0].tolist() == [-1] * 4
    assert 0 in found.token_index[1].tolist()


@pytest.mark.parametrize("states", [1.5, [1.7, 2], "a"])
def test_states_that_are_no_integers(states: Any) -> None:
    with pytest.raises(TypeError, match="states: expected an integer, got"):
        hf.Topology(states=states)


def test_a_topology_that_is_none() -> None:
    for call in (hf.token_graph, hf.transcript_graph):
        with pytest.raises(TypeError, match="topology: expected a Topology or None, got str"):
            call([0], like=torch.zeros(2, 1), topology="words")
    assert hf.Topology(states=np.int64(2)) == hf.Topology(states=2)
