"""CTC: known answers, contracts, derivatives under every transform, errors."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

import hmm_functional as hf
from tests.helpers.backends import LIBRARIES
from tests.helpers.labellings import Labellings, collapsed

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 9, 4))
FRAMES = LOGITS - np.logaddexp.reduce(LOGITS, axis=-1, keepdims=True)
TARGETS = np.array([[1, 1, 2, 3], [3, 1, -5, -5], [2, 2, 2, 0]])
LENGTHS, TARGET_LENGTHS = np.array([9, 6, 8]), np.array([4, 2, 3])
OPTIONS = {"lengths": LENGTHS.tolist(), "target_lengths": TARGET_LENGTHS.tolist()}

# torchaudio.functional.forced_align 2.11.0 on the CPU (blank 0)
PUBLISHED = [
    (
        [
            [-0.82, -1.057, -1.577, -5.152],
            [-1.52, -2.746, -2.062, -0.528],
            [-1.238, -1.931, -0.773, -2.269],
            [-2.015, -0.919, -1.267, -1.682],
            [-0.459, -1.712, -2.002, -2.951],
            [-2.757, -0.471, -1.359, -2.892],
            [-0.734, -5.035, -0.758, -3.104],
            [-0.969, -0.619, -4.361, -2.67],
            [-3.145, -1.784, -0.594, -1.441],
            [-2.04, -2.738, -0.966, -0.856],
            [-1.558, -2.012, -2.873, -0.512],
            [-1.35, -0.826, -2.196, -1.653],
        ],
        [1, 1, 3, 2],
        [0, 0, 0, 1, 0, 1, 0, 0, 3, 3, 3, 2],
    ),
    (
        [
            [-0.487, -2.444, -1.94, -1.863],
            [-1.921, -2.44, -0.472, -1.947],
            [-0.274, -1.865, -2.565, -4.8],
            [-0.626, -1.07, -3.818, -2.299],
            [-1.159, -1.156, -1.417, -2.046],
            [-4.645, -2.797, -0.25, -1.894],
            [-1.49, -1.304, -1.051, -1.873],
            [-3.162, -1.146, -1.815, -0.74],
            [-2.788, -1.452, -1.355, -0.807],
            [-0.969, -1.416, -1.575, -1.767],
            [-2.023, -0.667, -1.383, -2.267],
            [-2.105, -1.579, -3.444, -0.446],
        ],
        [2, 3, 2],
        [0, 0, 0, 0, 0, 2, 2, 3, 3, 0, 2, 0],
    ),
]


def torch_loss(logits, targets=TARGETS, lengths=LENGTHS, target_lengths=TARGET_LENGTHS):
    frames = logits.log_softmax(-1).transpose(0, 1)
    arrays = (torch.from_numpy(np.array(x)) for x in (np.clip(targets, 0, None), lengths, target_lengths))
    return torch.nn.functional.ctc_loss(frames, *arrays, reduction="none")


@pytest.mark.parametrize("library", ["numpy", "torch", "jax", "strict"])
def test_all_libraries_give_torchs_loss_and_the_same_paths(library):
    one = LIBRARIES[library]
    given = one.array(FRAMES), one.array(TARGETS)
    options = {"lengths": one.array(LENGTHS), "target_lengths": one.array(TARGET_LENGTHS)}
    found = one.numpy(one.call("ctc_log_likelihood", *given, **options))
    np.testing.assert_allclose(found, -torch_loss(torch.from_numpy(LOGITS)).numpy(), rtol=1e-12)
    best = one.call("ctc_align", *given, **options)
    best = best._replace(**{name: one.numpy(x) for name, x in best._asdict().items() if x is not None})
    expected = hf.ctc_align(FRAMES, TARGETS, lengths=LENGTHS, target_lengths=TARGET_LENGTHS)
    for x, y in zip(best[:5], expected[:5], strict=True):
        np.testing.assert_array_equal(x, y) if x.dtype.kind == "i" else np.testing.assert_allclose(x, y, rtol=1e-12)
    assert (best.labels[1, 6:] == -1).all()
    assert (best.start[1, 2:] == -1).all()
    if library == "jax":
        return
    every = one.numpy(hf.ctc_greedy_search(given[0], lengths=options["lengths"]))
    for row, frames, length in zip(every, FRAMES, LENGTHS, strict=True):
        said = collapsed(frames[:length].argmax(-1).tolist())
        np.testing.assert_array_equal(row[: len(said)], said)
        np.testing.assert_array_equal(row[len(said) :], -1)


def test_confidence_is_the_mean_posterior_of_a_token_in_its_segment():
    frames = FRAMES[0, :6]
    found = hf.ctc_align(frames, [1, 1, 2], posteriors=True)
    every = Labellings(frames)
    total, mass = every.log_likelihood([1, 1, 2]), np.zeros((6, 3))
    for weight, path in every.paths[1, 1, 2]:
        token = np.cumsum([v != 0 and v != before for v, before in zip(path, (0, *path), strict=False)]) - 1
        is_token = np.array(path) != 0
        mass[np.flatnonzero(is_token), token[is_token]] += float(np.exp(weight - total))
    expected = [mass[a:b, n].mean() for n, (a, b) in enumerate(zip(found.start, found.end, strict=True))]
    np.testing.assert_allclose(found.confidence, expected, rtol=1e-12)


@pytest.mark.parametrize(("frames", "targets", "path"), PUBLISHED)
def test_paths_are_torchaudios(frames, targets, path):
    found = hf.ctc_align(torch.tensor(frames), targets)
    assert found.labels.tolist() == path
    torch.testing.assert_close(found.log_joint, torch.tensor(frames)[range(len(path)), path].sum())


def test_gradients_of_logits_are_torchs():
    logits = torch.from_numpy(LOGITS).requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    mine = hf.ctc_log_likelihood(logits.log_softmax(-1), torch.from_numpy(TARGETS), **OPTIONS)
    (gradient,) = torch.autograd.grad((weights * mine).sum(), logits)
    (expected,) = torch.autograd.grad((-weights * torch_loss(logits)).sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_gradients_of_log_probs_are_posteriors():
    frames = torch.from_numpy(FRAMES[0, :5]).requires_grad_()
    (gradient,) = torch.autograd.grad(hf.ctc_log_likelihood(frames, [1, 2]), frames)
    every = Labellings(FRAMES[0, :5])
    total = every.log_likelihood([1, 2])
    expected = np.zeros((5, 4))
    for weight, path in every.paths[1, 2]:
        expected[np.arange(5), path] += float(np.exp(weight - total))
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-12, atol=1e-15)


def test_derivatives_of_every_order_and_mode():
    def value(logits):
        options = {"lengths": [4, 5], "target_lengths": [2, 2]}
        return hf.ctc_log_likelihood(logits.log_softmax(-1), torch.from_numpy(TARGETS[:2]), **options)

    logits = torch.from_numpy(LOGITS[:2, :5]).requires_grad_()
    assert torch.autograd.gradcheck(value, logits)
    assert torch.autograd.gradcheck(value, logits, check_forward_ad=True, check_backward_ad=False)
    assert torch.autograd.gradgradcheck(value, logits)


def test_vmap_and_compile_take_targets_as_data():
    frames, targets = torch.from_numpy(FRAMES), torch.from_numpy(np.clip(TARGETS, 1, None))
    expected = hf.ctc_log_likelihood(frames, targets)
    torch.testing.assert_close(torch.func.vmap(hf.ctc_log_likelihood)(frames, targets), expected)
    gradients = torch.func.vmap(torch.func.grad(hf.ctc_log_likelihood))(frames, targets)
    leaf = frames.clone().requires_grad_()
    torch.testing.assert_close(gradients, torch.autograd.grad(hf.ctc_log_likelihood(leaf, targets).sum(), leaf)[0])
    compiled = torch.compile(lambda x, y: hf.ctc_log_likelihood(x.log_softmax(-1), y), fullgraph=True, backend="eager")
    leaf = torch.from_numpy(LOGITS).requires_grad_()
    found = compiled(leaf, targets)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), leaf)[0].sum(-1), torch.zeros(3, 9).double())


def test_impossible_targets_have_no_likelihood_and_no_gradient():
    """The second has as many tokens as frames, but equal ones, and so is impossible, too; the third is possible."""
    frames = torch.from_numpy(FRAMES[:, :4]).requires_grad_()
    targets = torch.tensor([[1, 2, 3, 1, 2], [1, 1, 2, 3, 0], [1, 2, 3, 1, 0]])
    found = hf.ctc_log_likelihood(frames, targets, target_lengths=[5, 4, 4])
    assert found[:2].tolist() == [-np.inf, -np.inf]
    torch.testing.assert_close(found[2], frames[2, range(4), [1, 2, 3, 1]].sum())
    (gradient,) = torch.autograd.grad(found.sum(), frames)
    assert (gradient[:2] == 0).all()
    with pytest.raises(ValueError, match=r"targets\[1\].*4 tokens.*5 frames.*for 4 frames"):
        hf.ctc_align(frames, targets[:, :4])


def test_nothing_said_is_all_blanks():
    for targets in ([], np.zeros(0, np.int64)):
        np.testing.assert_allclose(hf.ctc_log_likelihood(FRAMES[0], targets), FRAMES[0, :, 0].sum(), rtol=1e-14)
        found = hf.ctc_align(FRAMES[0], targets)
        assert found.labels.tolist() == [0] * 9
        assert found.start.shape == found.end.shape == (0,)
    both = hf.ctc_log_likelihood(FRAMES[:2], [[], [3, 1]])
    np.testing.assert_allclose(both[0], FRAMES[0, :, 0].sum(), rtol=1e-14)
    np.testing.assert_allclose(both[1], hf.ctc_log_likelihood(FRAMES[1], [3, 1]), rtol=1e-14)


def test_nan_stays_in_its_sequence_and_padding_is_not_read():
    frames = FRAMES.copy()
    frames[0, 3] = np.nan
    frames[1, 6:] = np.nan
    found = hf.ctc_log_likelihood(frames, TARGETS, **OPTIONS)
    assert np.isnan(found[0])
    np.testing.assert_array_equal(found[1:], hf.ctc_log_likelihood(FRAMES, TARGETS, **OPTIONS)[1:])
    best = hf.ctc_align(frames, TARGETS, **OPTIONS)
    assert np.isnan(best.log_joint[0])
    assert np.isnan(best.confidence).all()
    assert np.isnan(hf.ctc_align(frames, TARGETS, posteriors=True, **OPTIONS).confidence[0]).all()
    for x in (best.labels, best.token_index, best.start, best.end):
        assert (x[0] == -1).all()
    leaf = torch.from_numpy(frames).requires_grad_()
    (gradient,) = torch.autograd.grad(hf.ctc_log_likelihood(leaf, torch.from_numpy(TARGETS), **OPTIONS)[1], leaf)
    assert (gradient[[0, 2]] == 0).all()
    assert (gradient[1, 6:] == 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("posteriors", [False, True])
def test_results_have_one_form_however_many_tokens_are_there(posteriors):
    one = hf.ctc_align(FRAMES[0], [1, 2], posteriors=posteriors)
    assert [np.shape(x) for x in one] == [(9,), (), (9,), *[(2,)] * 7, (), ()]
    short = hf.ctc_align(FRAMES, np.array([[1, 2, 3]] * 3), target_lengths=[1, 1, 1], posteriors=posteriors)
    assert [np.shape(x) for x in short] == [(3, 9), (3,), (3, 9), *[(3, 3)] * 7, (3,), (3,)]
    assert (short.start[:, 1:] == -1).all()
    assert np.isnan(short.confidence[:, 1:]).all() != posteriors


def test_batches_broadcast_and_answers_do_not_depend_on_them():
    targets = torch.tensor([[[1, 2]], [[3, 3]]])  # (2, 1, 2)
    frames = torch.from_numpy(FRAMES)
    found = hf.ctc_log_likelihood(frames, targets)
    assert found.shape == (2, 3)
    for i in range(2):
        for b in range(3):
            torch.testing.assert_close(found[i, b], hf.ctc_log_likelihood(frames[b], targets[i, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_precision(dtype):
    torch.manual_seed(0)
    logits = torch.randn(2, 2000, 20) * 3
    targets = torch.randint(1, 20, (2, 300))
    frames = logits.log_softmax(-1).to(dtype).requires_grad_()
    wide = frames.detach().double().requires_grad_()
    found, expected = hf.ctc_log_likelihood(frames, targets), hf.ctc_log_likelihood(wide, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(found.sum(), frames)
    (reference,) = torch.autograd.grad(expected.sum(), wide)
    assert gradient.dtype == dtype
    slack = max(1e-5, torch.finfo(dtype).eps)
    torch.testing.assert_close(gradient.double(), reference, rtol=slack, atol=slack)


def test_greedy_and_collapse():
    labels = torch.tensor([[0, 3, 3, 0, 3, 5], [2, 2, -1, -1, -1, -1]])
    assert hf.ctc_collapse(labels).tolist() == [[3, 3, 5, -1, -1, -1], [2, -1, -1, -1, -1, -1]]
    assert hf.ctc_collapse(labels, blank=3).tolist()[0] == [0, 0, 5, -1, -1, -1]
    frames = FRAMES.copy()
    frames[1, 2] = np.nan
    frames[2, 8:] = np.nan
    found = hf.ctc_greedy_search(frames, lengths=[9, 9, 8])
    assert (found[1] == -1).all()
    np.testing.assert_array_equal(found[2], hf.ctc_greedy_search(FRAMES, lengths=[9, 9, 8])[2])


def test_prefix_search_finds_what_the_best_path_misses():
    """Graves 2012, figure 7.5: two frames of 0.6 blank; the best path says nothing, the best labelling one symbol."""
    frames = torch.tensor([[0.6, 0.4], [0.6, 0.4]], dtype=torch.float64).log()
    assert hf.ctc_greedy_search(frames).tolist() == [-1, -1]
    found = hf.ctc_prefix_search(frames, num_results=3)
    assert found.labels.tolist() == [[1], [-1], [-1]]
    torch.testing.assert_close(found.log_likelihood.exp(), torch.tensor([0.64, 0.36, 0.0]).double())
    assert found.target_lengths.tolist() == [1, 0, 0]


def test_prefix_search_of_a_batch_is_that_of_each():
    frames = np.concatenate([FRAMES, np.full_like(FRAMES[:1], np.nan), np.full_like(FRAMES[:1], -np.inf)])
    lengths = np.array([9, 6, 1, 5, 5])
    found = hf.ctc_prefix_search(frames, lengths=lengths, beam_width=7, num_results=2)
    for b in range(3):
        one = hf.ctc_prefix_search(frames[b, : lengths[b]], beam_width=7, num_results=2)
        np.testing.assert_array_equal(found.labels[b, :, : one.labels.shape[-1]], one.labels)
        np.testing.assert_array_equal(found.scores[b], one.scores)
    assert np.isnan(found.scores[3]).all()
    assert (found.scores[4] == -np.inf).all()
    assert (found.labels[3:] == -1).all()


def test_segmentation_of_an_hour_in_small():
    """Spikes of tokens between blanks, other speech before and after, cut in blocks of frames."""
    rng = np.random.default_rng(1)
    num_steps, num_tokens = 1500, 200
    tokens = rng.integers(1, 20, num_tokens)
    at = np.sort(rng.choice(np.arange(100, 1400, 2), num_tokens, replace=False))
    best = np.zeros(num_steps, np.int64)
    best[at] = tokens
    best[:100:3], best[1400::3] = rng.integers(1, 20, 34), rng.integers(1, 20, 34)
    logits = rng.normal(size=(num_steps, 20)) + 9 * (np.arange(20) == best[:, None])
    frames = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    cuts = [7, 60, 61, 150]
    found = hf.ctc_segment(torch.from_numpy(frames), [x.tolist() for x in np.split(tokens, cuts)])
    np.testing.assert_array_equal(found.start, at[[0, *cuts]])
    np.testing.assert_array_equal(found.end, at[np.array([*cuts, num_tokens]) - 1] + 1)
    np.testing.assert_array_equal(found.token_index[at], np.arange(num_tokens))
    assert (found.confidence > -0.2).all()
    spoilt = frames.copy()
    spoilt[at[80] : at[90]] = rng.permuted(spoilt[at[80] : at[90]], axis=1)
    again = hf.ctc_segment(spoilt, np.split(tokens, cuts))
    assert int(np.argmin(again.confidence)) == 3


def test_segmentation_of_what_cannot_be():
    frames = FRAMES[0].copy()
    frames[:, 3] = -np.inf
    found = hf.ctc_segment(frames, [[1], [3]])
    assert (found.start.tolist(), found.log_joint) == ([-1, -1], -np.inf)
    frames[4, 2] = np.nan
    found = hf.ctc_segment(frames, [[1], [3]])
    assert (found.end.tolist(), np.isnan(found.confidence).all()) == ([-1, -1], True)
    assert hf.ctc_segment(FRAMES[0, :1], [[2]]).start.tolist() == [0]


def _model(highest):
    row = np.where(np.arange(4) == 1, highest, -2.0)
    return lambda symbols, states: (np.tile(row, (len(symbols), 1)), states)


def test_a_language_model_may_round():
    assert hf.ctc_prefix_search(FRAMES, language_model=_model(5e-4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: hf.ctc_log_likelihood(FRAMES, [[1, 0], [1, 2], [1, 2]]),
            ValueError,
            r"expected no blank \(0\)",
        ),
        (
            lambda: hf.ctc_log_likelihood(FRAMES, [[1, 4], [1, 2], [1, 2]]),
            ValueError,
            r"targets: .* in 0\.\.3",
        ),
        (lambda: hf.ctc_log_likelihood(FRAMES, [1.0]), TypeError, "targets: expected integers"),
        (
            lambda: hf.ctc_log_likelihood(FRAMES, TARGETS, target_lengths=[5, 1, 1]),
            ValueError,
            r"target_lengths.*0\.\.4",
        ),
        (
            lambda: hf.ctc_log_likelihood(FRAMES, [1], lengths=[10, 1, 1]),
            ValueError,
            r"lengths: .* in 1\.\.9",
        ),
        (lambda: hf.ctc_log_likelihood(FRAMES, [1], blank=4), ValueError, r"blank: expected values in 0\.\.3"),
        (lambda: hf.ctc_log_likelihood(FRAMES[0, 0], [1]), ValueError, r"log_probs: expected shape \(\.\.\., T, V\)"),
        (
            lambda: hf.ctc_log_likelihood(FRAMES, [[1], [1]]),
            ValueError,
            r"batch axes .* log_probs \(3,\), targets \(2,\)$",
        ),
        (
            lambda: hf.ctc_align(FRAMES, [1], lengths=[5, 5]),
            ValueError,
            r"batch axes .* log_probs \(3,\), targets \(\), lengths \(2,\)",
        ),
        (lambda: hf.ctc_log_likelihood(FRAMES.astype(int), [1]), TypeError, "log_probs: expected a floating-point"),
        (lambda: hf.ctc_log_likelihood(torch.zeros(3, 2), jax.numpy.ones(1, int)), TypeError, "targets.*jax"),
        (lambda: hf.ctc_align(FRAMES[0, :3], [1, 2, 2]), ValueError, "3 tokens, which take 4 frames.*for 3 frames"),
        (lambda: hf.ctc_align(FRAMES, [1, 2], lengths=[2, 1, 2]), ValueError, r"targets\[1\].*2 tokens.*for 1 frames"),
        (lambda: hf.ctc_collapse(FRAMES), TypeError, "labels: expected an integer dtype"),
        (
            lambda: hf.ctc_prefix_search(FRAMES, beam_width=2, num_results=3),
            ValueError,
            "num_results: .* at most",
        ),
        (lambda: hf.ctc_prefix_search(FRAMES, length_bonus=np.inf), ValueError, "length_bonus: expected a finite"),
        (
            lambda: hf.ctc_prefix_search(FRAMES, language_model=lambda symbols, states: (np.zeros(4), states)),
            ValueError,
            r"language_model: expected \(3, 4\)",
        ),
        (lambda: hf.ctc_prefix_search(FRAMES, language_model=3), TypeError, "language_model: expected a callable.*int"),
        (
            lambda: hf.ctc_prefix_search(FRAMES, language_model=_model(0.1)),
            ValueError,
            "language_model: expected log-probabilities, at most 0, got 0.1$",
        ),
        (lambda: hf.ctc_prefix_search(FRAMES, language_weight="1"), TypeError, "language_weight: .* number, got str"),
        (lambda: hf.ctc_prefix_search(FRAMES, length_bonus=None), TypeError, "length_bonus: .* number, got NoneType"),
        (lambda: hf.ctc_segment(FRAMES[0], [[1]], skip_score="0"), TypeError, "skip_score: expected a number, got str"),
        (lambda: jax.jit(hf.ctc_prefix_search)(FRAMES), TypeError, "log_probs: expected values that can be read"),
        (lambda: hf.ctc_segment(FRAMES, [[1]]), ValueError, r"log_probs: expected \(T, V\)"),
        (lambda: hf.ctc_segment(FRAMES[0], []), ValueError, "utterances: expected at least one"),
        (lambda: hf.ctc_segment(FRAMES[0], [[1], []]), ValueError, r"utterances\[1\]: expected at least one token"),
        (lambda: hf.ctc_segment(FRAMES[0], [[1], [2, 0]]), ValueError, r"utterances\[1\]: expected no blank.*at \[1\]"),
        (lambda: hf.ctc_segment(FRAMES[0], [[1] * 6]), ValueError, "6, which take 11 frames.*for 9 frames"),
    ],
)
def test_errors_say_what_was_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_utterances_of_another_library() -> None:
    with pytest.raises(TypeError, match=r"utterances\[0\]: expected a list, a NumPy array or an array of numpy, got"):
        hf.ctc_segment(np.zeros((3, 2)), [torch.tensor([1])])
