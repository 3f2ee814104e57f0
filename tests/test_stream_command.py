"""`stream`: states of raw samples as they become final, equal to decoding the whole; and how it ends."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import hmm_functional as hf
from pytorch_hmm import CategoricalHMM, GaussianHMM, HMMPyTorch, PoissonHMM
from pytorch_hmm.__main__ import main
from pytorch_hmm.speech.aligner import PhoneAligner
from pytorch_hmm.speech.deltas import add_deltas
from pytorch_hmm.speech.features import FeatureSettings, extract
from pytorch_hmm.speech.settings import AlignerSettings
from pytorch_hmm.speech.stream import Decoder, StreamError, StreamOptions, load_source, run
from tests.helpers.speech import WORDS, utterance

WORDS_SAID = ["<sil>", "ma", "see", "sam", "me", "<sil>"]


@pytest.fixture(scope="module")
def samples():
    return np.round(utterance(WORDS_SAID, 0)[0] * 32767).clip(-32768, 32767).astype("<i2")


@pytest.fixture(scope="module")
def model(tmp_path_factory, samples):
    """A plain HMM of MFCC, saved."""
    settings = FeatureSettings(num_coefficients=13)
    x = extract(samples.astype(np.float32) / 32768, settings)
    hmm = GaussianHMM(5, 13)
    hmm.initialize_from_data(x, generator=torch.Generator().manual_seed(0))
    hmm.fit(x, init="keep", num_iterations=3, tolerance=0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    hmm.save(path)
    return path


def offline(model, samples, decode, look_ahead):
    """(T,) states, and their probabilities or None, of the whole."""
    hmm = GaussianHMM.load(model)
    x = extract(samples.astype(np.float32) / 32768, FeatureSettings())
    with torch.no_grad():
        if decode == "viterbi":
            return hmm.viterbi_decode(x)[0], None
        lag = look_ahead if decode == "posterior" else 0
        rows = hf.smooth_fixed_lag(hmm.log_initial, hmm.log_transition, hmm.emission_log_prob(x), lag=lag).exp()
    return rows.argmax(1), rows.amax(1)


def decoded(options, samples, sink=None):
    sink = sink or io.StringIO()
    assert run(options, io.BytesIO(samples.tobytes()), sink) == 0
    return [line.split("\t") for line in sink.getvalue().splitlines()]


@pytest.mark.parametrize("decode", ["viterbi", "posterior", "filter"])
@pytest.mark.parametrize("chunk", [1, 16, 1000])
def test_equal_to_the_whole(model, samples, decode, chunk):
    options = StreamOptions(model, decode=decode, chunk=chunk, look_ahead=5, max_delay=None, features="mfcc")
    rows = decoded(options, samples)
    states, probabilities = offline(model, samples, decode, 5)
    assert [row[0] for row in rows] == [f"{n / 100:.3f}" for n in range(len(states))]
    assert [int(row[1]) for row in rows] == states.tolist()
    if probabilities is None:
        assert all(len(row) == 2 for row in rows)
    else:
        assert all(abs(float(row[2]) - p) < 1e-3 for row, p in zip(rows, probabilities.tolist(), strict=True))


def test_lines_come_as_soon_as_states_are_final(model, samples):
    """Frame t is there once frame t + look-ahead is, whose window ends 280 samples after its start."""
    options = StreamOptions(model, decode="posterior", chunk=1, look_ahead=3, features="mfcc")
    x = samples.astype(np.float32) / 32768
    for more, wanted in ((279, 10), (280, 11)):
        decoder = Decoder(load_source(options), options)
        assert len(decoder.push(x[: 160 * 13 + more])) == wanted
        assert decoder.push(x[:0]) == []


def test_changes_alone(model, samples):
    options = StreamOptions(model, decode="filter", features="mfcc")
    rows = decoded(options, samples)
    want = [row for n, row in enumerate(rows) if n == 0 or row[1] != rows[n - 1][1]]
    changes = decoded(StreamOptions(model, decode="filter", features="mfcc", changes=True), samples)
    assert changes == want
    assert 1 < len(want) < len(rows)


def test_phones_of_an_aligner(tmp_path, samples):
    """Any phone after any other, on features as they were in training."""
    aligner = PhoneAligner(AlignerSettings(iterations=2))
    said = [WORDS_SAID, ["<sil>", "sam", "see", "<sil>"], ["<sil>", "me", "ma", "<sil>"]]
    sounds = {str(n): utterance(words, n)[0] for n, words in enumerate(said)}
    phones = {str(n): [phone for word in words for phone in WORDS[word]] for n, words in enumerate(said)}
    features = {name: extract(x, FeatureSettings()) for name, x in sounds.items()}
    aligner.fit(features, phones)
    aligner.save(tmp_path / "model")
    loop = aligner.phone_loop()
    x = (add_deltas(extract(samples.astype(np.float32) / 32768, loop.settings)) - loop.mean) / loop.scale
    with torch.no_grad():
        states = loop.hmm.viterbi_decode(x)[0].tolist()
    for chunk in (1, 50):
        rows = decoded(StreamOptions(tmp_path / "model", chunk=chunk, max_delay=None), samples)
        assert [row[1] for row in rows] == [loop.names[state] for state in states]
    truth = [phone for phone, start, end in utterance(WORDS_SAID, 0)[1] for _ in range(round(100 * (end - start)))]
    right = [row[1] == phone for row, phone in zip(rows, truth, strict=True)]
    assert sum(right) > 0.85 * len(right)  # sounds this distinct need no transcript
    for decode in ("posterior", "filter"):
        rows = decoded(StreamOptions(tmp_path / "model", decode=decode), samples)
        assert len(rows) == len(x)
        assert {row[1] for row in rows} <= {"SIL", "AA", "IY", "M", "S"}
        assert sum(float(row[2]) > 0.5 for row in rows) > 0.9 * len(rows)  # of a phone, not of one of its states


def test_with_derivatives(tmp_path, samples):
    hmm = GaussianHMM(3, 39)
    hmm.save(tmp_path / "model")
    rows = decoded(StreamOptions(tmp_path / "model", decode="filter", features="mfcc", deltas=True), samples)
    assert len(rows) == len(extract(samples.astype(np.float32)))


def test_half_a_sample_at_the_end_is_none(model, samples, capsys):
    options = StreamOptions(model, features="mfcc", decode="filter")
    sink = io.StringIO()
    assert run(options, io.BytesIO(samples.tobytes() + b"\1"), sink) == 0
    assert capsys.readouterr().err == (
        "pytorch_hmm: an odd number of bytes came: the last one, half a sample, is left out\n"
    )
    assert sink.getvalue().splitlines() == ["\t".join(row) for row in decoded(options, samples)]
    assert decoded(options, samples[:0]) == []
    assert decoded(options, samples[:279]) == []  # no window is complete
    assert capsys.readouterr().err == ""


class Drops(io.BytesIO):
    """Bytes that come in threes."""

    def read1(self, _=-1):
        return self.read(3)


@pytest.mark.parametrize("source", [io.BytesIO, Drops])
def test_a_wav_file_is_refused(model, samples, source, capsys, monkeypatch):
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(source(file.getvalue())))
    assert main(["stream", "--model", str(model), "--features", "mfcc"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "expected raw samples on standard input, got a WAV file" in captured.err
    assert "`tail -c +45 FILE`" in captured.err


def test_samples_that_begin_as_a_wav_file_are_samples(model, samples):
    content = b"RIFFWAVE" + samples.tobytes()
    options, sink = StreamOptions(model, features="mfcc", decode="filter"), io.StringIO()
    assert run(options, Drops(content), sink) == 0
    want = decoded(options, np.frombuffer(content, "<i2"))
    assert [line.split("\t") for line in sink.getvalue().splitlines()] == want


def test_help_tells_the_defaults(model, capsys):
    for command, wanted in (
        ("align", [f"stage of training ({AlignerSettings.iterations})"]),
        ("stream", [f"waits for ({StreamOptions.look_ahead})", f"for no limit ({StreamOptions.max_delay})"]),
    ):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        told = " ".join(capsys.readouterr().out.split())
        assert all(words in told for words in wanted)


def test_unusable_models_and_settings(model, tmp_path, capsys):
    (tmp_path / "text").write_text("no model")
    CategoricalHMM(2, 3).save(tmp_path / "symbols")
    HMMPyTorch(num_states=13).save(tmp_path / "scores")
    for arguments, message in (
        (["--model", str(tmp_path / "missing")], "--model: "),
        (["--model", str(tmp_path / "text")], "--model: "),
        (["--model", str(model)], "--features: expected mfcc or log_mel"),
        (["--model", str(tmp_path / "symbols"), "--features", "mfcc"], "holds a CategoricalHMM"),
        (["--model", str(model), "--features", "mfcc", "--deltas"], "of frames (13,)"),
        (["--model", str(model), "--features", "mfcc", "--chunk", "0"], "--chunk: expected at least 1, got 0"),
        (["--model", str(model), "--features", "mfcc", "--rate", "-5"], "--rate: expected at least 1, got -5"),
        (["--model", str(model), "--features", "mfcc", "--rate", "40"], "--rate: hop and window"),
        (
            ["--model", str(model), "--features", "mfcc", "--look-ahead", "5"],
            "--look-ahead: expected only with --decode posterior, got 5 with viterbi",
        ),
        (
            ["--model", str(model), "--features", "mfcc", "--decode", "filter", "--max-delay", "0"],
            "--max-delay: expected only with --decode viterbi, got 0 with filter",
        ),
        (["--model", str(tmp_path / "scores"), "--features", "mfcc"], "holds a HMMPyTorch"),
    ):
        assert main(["stream", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("pytorch_hmm: ")
        assert message in captured.err
    with pytest.raises(SystemExit) as caught:
        main(["stream"])
    assert caught.value.code == 2
    assert "--model" in capsys.readouterr().err


def test_rate_has_to_be_the_models(model):
    source = load_source(StreamOptions(model, features="mfcc"))
    with pytest.raises(StreamError, match="--rate: the model takes 16000 samples a second, got 8000"):
        Decoder(source, StreamOptions(model, 8000, features="mfcc"))


def test_ctrl_c_ends_a_stream_as_its_end_would(model, samples):
    """While it waits for samples; what came till then is decoded."""
    options = StreamOptions(model, decode="posterior", features="mfcc")
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))

    class Sink(io.StringIO):
        def flush(self):
            if not timer.ident:  # with the first lines
                timer.start()

    sink, before = Sink(), signal.getsignal(signal.SIGINT)
    into, out = os.pipe()
    os.write(out, samples.tobytes()[:32_000])
    with os.fdopen(into, "rb") as source, os.fdopen(out, "wb"):
        assert run(options, source, sink) == 130
    timer.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert [line.split("\t") for line in sink.getvalue().splitlines()] == decoded(options, samples[:16_000])


def test_ctrl_c_never_breaks_in_on_a_chunk(model, samples, monkeypatch):
    """Asked to stop in the middle of one, it is finished and the rest is not read."""
    push, calls = Decoder.push, []

    def asked(self, piece):
        calls.append(len(piece))
        signal.raise_signal(signal.SIGINT)
        return push(self, piece)

    monkeypatch.setattr(Decoder, "push", asked)
    options = StreamOptions(model, decode="filter", features="mfcc")
    sink = io.StringIO()
    assert run(options, io.BytesIO(samples.tobytes()), sink) == 130
    assert calls == [16 * 160]
    assert len(sink.getvalue().splitlines()) == 16


def test_a_reader_that_goes_away_ends_it_without_a_word(model, samples):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "pytorch_hmm", "stream", "--model", str(model), "--features", "mfcc"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--decode", "filter"], env=environment, **pipes) as process:
        process.stdin.write(samples.tobytes()[:32_000])
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"0.000\t")
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(samples.tobytes())
            process.stdin.flush()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_what_cannot_be_read_or_printed_is_told_in_a_line(model, samples, tmp_path, monkeypatch):
    options = StreamOptions(model, decode="filter", features="mfcc")

    class Full(io.StringIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StreamError, match="cannot read samples or print states: No space left on device"):
        run(options, io.BytesIO(samples.tobytes()), Full())
    PoissonHMM(2, 13).save(tmp_path / "counts")
    with pytest.raises(StreamError, match=r"--model: does not take mfcc features: x.* expected counts"):
        decoded(StreamOptions(tmp_path / "counts", features="mfcc"), samples)
    for name, words in (("stdout", "print on standard output"), ("stdin", "samples on standard input")):
        monkeypatch.setattr(sys, name, None)
        with pytest.raises(StreamError, match=f"expected .*{words}, which is closed"):
            run(options)
    monkeypatch.undo()


def test_the_second_ctrl_c_ends_what_cannot_be_printed(model, samples):
    class Stalled(io.StringIO):
        def write(self, _):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    options, before = StreamOptions(model, decode="filter", features="mfcc"), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(options, io.BytesIO(samples.tobytes()), Stalled())
    assert signal.getsignal(signal.SIGINT) is before


def test_times_are_those_of_the_samples(model):
    """A hop of 10 ms is 220 samples at 22 050 Hz, not 220.5."""
    samples = np.random.default_rng(0).integers(-100, 100, 22_050 * 4).astype("<i2")
    rows = decoded(StreamOptions(model, 22_050, decode="filter", features="mfcc"), samples)
    assert float(rows[-1][0]) == pytest.approx((len(rows) - 1) * 220 / 22_050, abs=5.1e-4)
    assert 0 < 4.0 - float(rows[-1][0]) < 0.02


def test_slopes_are_those_of_training(tmp_path, samples):
    x = samples.astype(np.float32) / 32768
    settings = AlignerSettings(iterations=1, delta_window=4, acoustic_scales=(0.1,))
    aligner = PhoneAligner(settings)
    aligner.fit({"a": extract(x)}, {"a": ["SIL", "M", "AA", "SIL"]})
    aligner.save(tmp_path / "model")
    hmm, names, _, window, mean, scale = aligner.phone_loop()
    assert window == 4
    with torch.no_grad():
        found = hmm.filter((add_deltas(extract(x), 4) - mean) / scale)
    share = torch.stack([found[:, [n == name for n in names]].sum(1) for name in aligner.phones]).amax(0)
    with pytest.raises(StreamError, match="--features, --deltas: expected neither"):
        load_source(StreamOptions(tmp_path / "model", deltas=True))
    rows = decoded(StreamOptions(tmp_path / "model", decode="filter"), samples)
    assert [float(row[2]) for row in rows] == pytest.approx(share.tolist(), abs=1e-3)
