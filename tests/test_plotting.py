"""What pictures show, and that they are files."""

from __future__ import annotations

import errno
import os
from math import nan

import numpy as np
import pytest
import torch

from pytorch_hmm import io, plotting
from pytorch_hmm.speech.labels import Segment

PHONES = [Segment("a", 0, 0.3, 0.9), Segment("long phone", 0.3, 0.32, 0.1), Segment("c", 0.32, 0.5, nan)]


def test_features_and_posteriors():
    x = torch.randn(50, 20)
    axes = plotting.plot_features(x, 0.01)
    assert np.array_equal(axes.images[0].get_array(), x.T)
    assert axes.get_xlim() == (0, 0.5)
    assert plotting.plot_features(x).get_xlim() == (0, 50)
    axes = plotting.plot_posteriors(torch.rand(50, 3), names=["x", "y", "z"])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "y", "z"]
    assert axes.images[0].get_clim() == (0, 1)


def test_a_path_changes_between_frames():
    axes = plotting.plot_path(torch.tensor([0, 0, 2, -1, 1]), 0.1, features=torch.randn(5, 4))
    values, edges, _ = axes.patches[0].get_data()
    assert np.array_equal(values, [0, 0, 2, nan, 1], equal_nan=True)
    np.testing.assert_allclose(edges, [0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert axes.get_ylim() == (-0.5, 2.5)


def test_an_alignment():
    words = [Segment("word", 0, 0.32)]
    figure = plotting.plot_alignment(torch.randn(50, 20), {"words": words, "phones": PHONES}, title="name")
    image, upper, lower, scale = figure.axes
    assert image.get_title() == "name"
    assert (upper.get_ylabel(), lower.get_ylabel(), scale.get_ylabel()) == ("words", "phones", "confidence")
    assert len({axes.get_xlim() for axes in (image, upper, lower)}) == 1
    boxes = [(box.get_x(), box.get_width()) for box in lower.patches]
    np.testing.assert_allclose(boxes, [(0, 0.3), (0.3, 0.02), (0.32, 0.18)])
    first, second, third = (box.get_facecolor() for box in lower.patches)
    assert first[1] > first[0]  # green
    assert second[0] > second[1]  # red
    assert third[0] == third[1] == third[2]
    assert [text.get_text() for text in lower.texts] == ["a", "long phone", "c"]
    assert [text.get_rotation() for text in lower.texts] == [0, 90, 0]
    assert len(image.collections) == 2
    assert len(image.collections[1].get_segments()) == 4  # each boundary once


def test_without_confidences_there_is_no_scale():
    assert len(plotting.plot_alignment(torch.randn(9, 2), {"t": [Segment("a", 0, 0.09)]}).axes) == 2


def test_long_recordings_stay_drawable():
    figure = plotting.plot_alignment(torch.zeros(100_000, 2), {"t": []})
    assert figure.get_figwidth() == plotting.WIDEST


def test_bad_arguments():
    for call, message in (
        (
            lambda: plotting.plot_features(torch.zeros(3)),
            r"features: expected shape \(T, \.\.\.\), .* got \(3,\)",
        ),
        (lambda: plotting.plot_path(torch.zeros(3, 2)), r"states: expected shape \(T,\), got \(3, 2\)"),
        (lambda: plotting.plot_posteriors(torch.rand(4, 3), names=["x"]), "names: expected one a state, 3, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_files(tmp_path, monkeypatch):
    figure = plotting.plot_segments(PHONES).figure
    for ending, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), ("", b"\x89PNG")):
        plotting.save_figure(figure, tmp_path / f"a{ending}")
        assert (tmp_path / f"a{ending}").read_bytes().startswith(magic)
    before = (tmp_path / "a.png").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(io.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        plotting.save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3
