"""Streams: what comes out, when, and how the guide's fourth section behaves."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

import hmm_functional as hf
from pytorch_hmm import CategoricalHMM, GaussianHMM, HMMPyTorch, StreamingHMMProcessor


def test_rows_and_when():
    processor = StreamingHMMProcessor(HMMPyTorch(5), chunk_size=160, overlap=80)
    x = torch.randn(400, 5)
    assert processor.flush() is None
    assert processor.process_chunk(x[:0]) is None
    assert processor.process_chunk(x[:80]) is None
    assert processor.process_chunk(x[80:81]).shape == (1, 5)
    assert processor.process_chunk(x[81:240]).shape == (159, 5)
    rows = processor.flush()
    assert rows.shape == (80, 5)
    assert not rows.requires_grad
    torch.testing.assert_close(rows.sum(-1), torch.ones(80))
    assert processor.flush() is None


def test_a_flush_or_a_reset_starts_anew():
    torch.manual_seed(0)
    processor = StreamingHMMProcessor(GaussianHMM(3, 2), overlap=2)
    x = torch.randn(9, 2)
    first = processor.process_chunk(x)
    processor.flush()
    torch.testing.assert_close(processor.process_chunk(x), first, rtol=0, atol=0)
    processor.reset()
    torch.testing.assert_close(processor(x), first, rtol=0, atol=0)


def test_overlap_is_the_lag():
    torch.manual_seed(1)
    model = GaussianHMM(3, 2, topology="left_to_right")
    x = torch.randn(12, 2)
    chain = (model.log_initial, model.log_transition, model.emission_log_prob(x))
    for overlap in (0, 1, 5, 40):
        processor = StreamingHMMProcessor(model, overlap=overlap)
        rows = [processor.process_chunk(x[:7]), processor.process_chunk(x[7:]), processor.flush()]
        found = torch.cat([part for part in rows if part is not None])
        expected = hf.smooth_fixed_lag(*chain, lag=overlap).exp()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, model.forward_backward(x)[0], rtol=0, atol=1e-5)  # the lag outlasts the stream


def test_filter_does_not_wait():
    model = GaussianHMM(3, 2)
    x = torch.randn(12, 2)
    processor = StreamingHMMProcessor(model, overlap=80, decode="filter")
    torch.testing.assert_close(processor.process_chunk(x), model.filter(x), rtol=0, atol=1e-6)
    assert processor.flush() is None


def test_guide_section_4():
    torch.manual_seed(2)
    model = HMMPyTorch(5)
    processor = StreamingHMMProcessor(hmm_model=model, chunk_size=160, overlap=80)
    with pytest.warns(UserWarning, match="features of width 80.*5 states.*untrained") as caught:
        shapes = [processor.process_chunk(torch.randn(n, 80)).shape for n in [160] * 6 + [40]]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert shapes == [(80, 5)] + [(160, 5)] * 5 + [(40, 5)]
    assert processor.scores.weight.shape == (5, 80)
    assert not any(name.startswith("scores") for name in model.state_dict())
    assert any(name.startswith("scores") for name in processor.state_dict())
    with pytest.raises(ValueError, match=r"features: expected shape \(..., T, 80\), got \(3, 5\)"):
        processor.process_chunk(torch.randn(3, 5))


def test_a_trained_layer_can_be_given():
    processor = StreamingHMMProcessor(HMMPyTorch(3), overlap=0)
    processor.scores = torch.nn.Sequential(torch.nn.Linear(7, 3), torch.nn.LogSoftmax(-1))
    x = torch.randn(6, 7)
    torch.testing.assert_close(processor.process_chunk(x), processor.hmm_model.filter(processor.scores(x)))


def test_the_width_is_the_streams_own():
    processor = StreamingHMMProcessor(HMMPyTorch(3), overlap=0)
    processor.process_chunk(torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"features: expected shape \(..., T, 3\), got \(2, 7\)"):
        processor.process_chunk(torch.randn(2, 7))


def test_missing_frames_and_symbols():
    model = GaussianHMM(2, 1, missing="nan")
    x = torch.tensor([[0.0], [torch.nan], [1.0]])
    processor = StreamingHMMProcessor(model, overlap=0)
    rows = torch.cat([processor.process_chunk(frame[None]) for frame in x])
    torch.testing.assert_close(rows, model.filter(x), rtol=0, atol=1e-6)
    model = CategoricalHMM(2, 3)
    x = torch.tensor([0, 2, 1, 1])
    processor = StreamingHMMProcessor(model, overlap=0)
    torch.testing.assert_close(processor.process_chunk(x), model.filter(x), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"x\[1\]: expected symbols 0..2, got 3"):
        processor.process_chunk(torch.tensor([0, 3]))


def test_double_and_autocast():
    model = GaussianHMM(2, 3).double()
    processor = StreamingHMMProcessor(model, overlap=1)
    assert processor.process_chunk(torch.randn(4, 3, dtype=torch.float64)).dtype == torch.float64
    processor = StreamingHMMProcessor(HMMPyTorch(2), overlap=1)
    with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16):
        warnings.simplefilter("ignore")
        assert processor.process_chunk(torch.randn(4, 3)).dtype == torch.float32


def test_a_running_stream_can_be_copied():
    torch.manual_seed(3)
    processor = StreamingHMMProcessor(GaussianHMM(2, 3), overlap=2)
    x = torch.randn(10, 3)
    processor.process_chunk(x[:5])
    twin = copy.deepcopy(processor)
    torch.testing.assert_close(twin.process_chunk(x[5:]), processor.process_chunk(x[5:]), rtol=0, atol=0)
