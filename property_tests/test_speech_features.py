"""Features of a stream are those of the whole, however the samples are cut."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from property_tests.strategies import seeds
from pytorch_hmm.speech.deltas import add_deltas
from pytorch_hmm.speech.features import DeltaStream, FeatureSettings, FeatureStream, extract, log_energy


@given(
    seeds,
    st.sampled_from([8000, 11_025, 16_000]),
    st.sampled_from(["mfcc", "log_mel"]),
    st.sampled_from([(0.010, 0.025), (0.005, 0.025), (0.010, 0.010), (0.0125, 0.032)]),
    st.integers(0, 1500),
    st.lists(st.integers(0, 700), max_size=8),
)
def test_any_chunking(seed, rate, kind, sizes, more, cuts):
    settings = FeatureSettings(rate, kind, *sizes)
    x = np.random.default_rng(seed).standard_normal(settings.window_samples + more)
    pieces = np.split(x, np.minimum(np.cumsum(cuts, dtype=int), len(x)))
    stream = FeatureStream(settings)
    for _ in range(2):  # flush starts anew
        rows = torch.cat([*(stream.push(piece) for piece in pieces), stream.flush()])
        assert torch.equal(rows, extract(x, settings))
    assert len(rows) == round(len(x) / settings.hop_samples + 1e-9)
    if sizes == (0.010, 0.025):
        assert len(log_energy(x, rate)) == len(rows)


@given(seeds, st.integers(1, 30), st.integers(1, 3), st.lists(st.integers(0, 9), max_size=8))
def test_any_chunking_of_slopes(seed, num_frames, window, cuts):
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((num_frames, 2)))
    stream = DeltaStream(window)
    for _ in range(2):
        seen, rows = 0, []
        for piece in np.split(x, np.minimum(np.cumsum(cuts, dtype=int), num_frames)):
            seen += len(piece)
            rows.append(stream.push(piece))
            assert sum(map(len, rows)) == max(0, seen - stream.latency)
        rows = [row for row in (*rows, stream.flush()) if len(row)]
        assert torch.equal(torch.cat(rows), add_deltas(x, window))
