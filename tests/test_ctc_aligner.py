"""CTCAligner: names for numbers, torch's reductions, one sequence and batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hmm_functional as hf
from pytorch_hmm import CTCAligner, CTCSpan

SYMBOLS = ["a", "-", "b", "c"]
FRAMES = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)


def aligner(**options):
    return CTCAligner(SYMBOLS, blank="-", **options)


def test_likelihood_and_loss_are_torchs():
    frames = FRAMES.clone().requires_grad_()
    said, counts = torch.tensor([[0, 0, 3], [2, 0, 0]]), torch.tensor([3, 1])
    for reduction in ("none", "sum", "mean"):
        loss = aligner().loss(frames, [["a", "a", "c"], ["b"]], [8, 5], reduction=reduction)
        expected = torch.nn.CTCLoss(blank=1, reduction=reduction)(
            frames.transpose(0, 1), said, torch.tensor([8, 5]), counts
        )
        torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        aligner()(frames, said, [8, 5], counts),
        hf.ctc_log_likelihood(frames, said, lengths=[8, 5], target_lengths=counts, blank=1),
    )
    impossible = aligner().loss(frames, [["a"] * 5, ["b"]], reduction="none")
    assert impossible[0] == torch.inf
    assert aligner().loss(frames, [["a"] * 5, ["b"]], reduction="none", zero_infinity=True)[0] == 0


def test_spans_of_tokens():
    found = aligner(frame_shift=0.02).align(FRAMES, [["a", "a", "c"], ["b"]], [8, 5])
    best = hf.ctc_align(FRAMES, [[0, 0, 3], [2]], lengths=[8, 5], blank=1, posteriors=True)
    assert [[span.label for span in spans] for spans in found] == [["a", "a", "c"], ["b"]]
    for spans, start, end, confidence in zip(found, best.start, best.end, best.confidence, strict=True):
        for n, span in enumerate(spans):
            assert span == CTCSpan(
                span.label,
                int(start[n]),
                int(end[n]),
                round(0.02 * int(start[n]), 9),
                round(0.02 * int(end[n]), 9),
                float(confidence[n]),
            )
    one = CTCAligner(blank=1).align(FRAMES[1, :5], [2])
    assert [span[:5] for span in one] == [(2, *found[1][0][1:3], None, None)]
    for length in (5, [5], torch.tensor([5]), np.array(5)):
        assert CTCAligner(blank=1).align(FRAMES[1], [2], length, [1]) == one
        assert CTCAligner(blank=1)(FRAMES[1], [2], length).shape == ()
    never = FRAMES[0].clone()
    never[:, 3] = -torch.inf
    assert aligner().align(never, ["c"]) == []


def test_transcripts():
    greedy = hf.ctc_greedy_search(FRAMES, lengths=[8, 5], blank=1)
    names = [[SYMBOLS[v] for v in row if v >= 0] for row in greedy.tolist()]
    assert aligner().decode(FRAMES, [8, 5]) == names
    assert aligner().decode(FRAMES[1], 5) == names[1]
    best = hf.ctc_prefix_search(FRAMES, lengths=[8, 5], blank=1, num_results=2, length_bonus=1.0)
    said = [[[SYMBOLS[v] for v in row if v >= 0] for row in rows] for rows in best.labels.tolist()]
    assert aligner().decode(FRAMES, [8, 5], method="prefix", num_results=2, length_bonus=1.0) == said
    assert aligner().decode(FRAMES[0], method="prefix") == hf_names(hf.ctc_prefix_search(FRAMES[0], blank=1).labels[0])
    assert CTCAligner().decode(torch.full((2, 3), -torch.inf), method="prefix") == []


def hf_names(row):
    return [SYMBOLS[v] for v in row.tolist() if v >= 0]


def test_segments_of_utterances():
    found = aligner(frame_shift=0.5).segment(FRAMES[0], [["a"], ["b", "c"]], window=2)
    expected = hf.ctc_segment(FRAMES[0], [[0], [2, 3]], blank=1, window=2)
    assert [span.label for span in found] == [0, 1]
    np.testing.assert_array_equal([span.start for span in found], expected.start)
    np.testing.assert_allclose([span.end_time for span in found], 0.5 * expected.end)
    np.testing.assert_allclose([span.confidence for span in found], expected.confidence)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CTCAligner(["a", "a"]), ValueError, "symbols: expected every name once"),
        (lambda: CTCAligner(["a"], blank="b"), ValueError, "blank: unknown symbol 'b'; known: a"),
        (lambda: CTCAligner(frame_shift=0.0), ValueError, "frame_shift: expected a positive number"),
        (lambda: aligner().align(FRAMES[0], ["x"]), ValueError, "targets: unknown symbol 'x'; known: a, -"),
        (lambda: aligner().align(FRAMES[0], ["a"] * 9), ValueError, "9 tokens, which take 17 frames.*for 8 frames"),
        (
            lambda: aligner().align(FRAMES[0], "ab"),
            TypeError,
            "targets: expected a list of symbols.*its .split",
        ),
        (lambda: aligner().segment(FRAMES[0], [["a"], "b"]), TypeError, r"utterances\[1\]: expected a list of symbols"),
        (lambda: aligner().align(FRAMES[0], ["a"], [8, 8]), ValueError, r"lengths: expected one number.*\(2,\)"),
        (lambda: aligner().align(FRAMES[0], [["a"]]), ValueError, r"targets: expected one transcript.*\(1,\)"),
        (lambda: aligner()(FRAMES[..., :3], ["a"]), ValueError, "log_probs: expected 4 symbols"),
        (lambda: aligner()(FRAMES[0, 0], ["a"]), ValueError, r"log_probs: expected \(T, V\) or \(B, T, V\)"),
        (lambda: aligner()(FRAMES.numpy(), ["a"]), TypeError, "log_probs: expected a torch.Tensor, got ndarray"),
        (lambda: aligner().loss(FRAMES, ["a"], reduction="max"), ValueError, "reduction: expected one of 'mean'"),
        (lambda: aligner().decode(FRAMES, method="beam"), ValueError, "method: expected 'greedy' or 'prefix'"),
        (lambda: aligner().decode(FRAMES, beam_width=3), TypeError, "no options of method 'greedy', got beam_width"),
    ],
)
def test_errors_say_what_was_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call()
