"""The command line: the demo on the shipped speech, on the user's file, and what it says to bad ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pytorch_hmm import demo
from pytorch_hmm.__main__ import main


def test_the_shipped_speech(tmp_path, capsys):
    result = demo.run(None, None, 2, 8, tmp_path)
    assert result.states.shape == (310,)
    assert result.posteriors.shape == (310, 40)  # a state a phone
    assert result.after > result.before + 1
    assert result.stream_gap < 1e-5
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for words in ("log-likelihood a frame, before", "s of audio a second of computing", "phone boundaries met"):
        assert words in printed


def test_a_users_file(tmp_path, capsys):
    wav = tmp_path / "tone.wav"
    seconds = np.arange(22050) / 22050
    soundfile.write(wav, np.stack([np.sin(2 * np.pi * 440 * seconds)] * 2, 1) * 0.1, 22050)
    assert main(["demo", "--wav", str(wav), "--states", "3", "--iterations", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "100 frames" in printed or "101 frames" in printed
    assert "phone boundaries" not in printed


@pytest.mark.parametrize("content", [None, b"", b"not sound at all", "short", "folder"])
def test_bad_files_get_one_line_and_status_2(tmp_path, content, capsys):
    wav = tmp_path / "bad.wav"
    if content == "short":
        soundfile.write(wav, np.zeros(100), 16000)
    elif content == "folder":
        wav.mkdir()
    elif content is not None:
        wav.write_bytes(content)
    assert main(["demo", "--wav", str(wav), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert str(wav) in captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [("--states", "0"), ("--states", "9999"), ("--mixtures", "0")])
def test_bad_settings(tmp_path, option, capsys):
    assert main(["demo", *option, "--out", str(tmp_path)]) == 2
    assert option[0] in capsys.readouterr().err


def test_as_a_module():
    ran = subprocess.run(
        [sys.executable, "-m", "pytorch_hmm", "demo", "--wav", "missing.wav"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "pytorch_hmm: --wav: no such file: missing.wav\n"


def test_boundaries():
    reference = np.array([0.1, 0.2, 0.3])
    assert demo.boundary_hits(np.array([0.1, 0.23, 0.4]), reference) == (1 / 3, 2 / 3)
    assert demo.boundary_hits(np.array([0.1, 0.2]), reference) == (2 / 3, 2 / 3)
    assert demo.boundary_hits(np.array([]), reference) == (0.0, 0.0)
