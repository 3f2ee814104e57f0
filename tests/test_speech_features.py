"""Sound files and features: librosa's own frames, where frames lie in time, and what is said of bad files."""

from __future__ import annotations

import struct
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch

from pytorch_hmm.speech.audio import AudioError, read_audio
from pytorch_hmm.speech.features import FeatureSettings, FeatureStream, extract, log_energy, log_mel, mfcc

EXAMPLE = Path(__file__).parents[1] / "pytorch_hmm" / "examples" / "arctic" / "arctic_a0009.wav"


def test_librosa_finds_the_same():
    """Its own framing, of samples mirrored at the ends, and 56 of weight zero around a window."""
    samples = read_audio(EXAMPLE)
    x = samples.double().numpy()
    padded = np.pad(np.pad(x, (120, 200), mode="reflect"), 56)
    power = librosa.feature.melspectrogram(
        y=padded, sr=16_000, n_fft=512, win_length=400, hop_length=160, center=False, n_mels=40
    )
    levels = np.log(np.maximum(power, 1e-10))
    found = log_mel(samples)
    assert found.shape == (310, 40)
    np.testing.assert_allclose(found, levels.T[:310], rtol=1e-5, atol=1e-5)
    wanted = librosa.feature.mfcc(S=levels, n_mfcc=13).T[:310]
    np.testing.assert_allclose(mfcc(samples), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100])
def test_frames_lie_where_they_should(rate):
    """A click is in the frame that stands for its time, whatever the rate."""
    settings = FeatureSettings(rate)
    hop = settings.hop_samples
    for frame in (0, 7, 49):
        x = np.zeros(50 * hop)
        x[frame * hop + hop // 2] = 1
        assert len(extract(x, settings)) == 50
        assert int(extract(x, settings)[:, 0].argmax()) == frame
        energy = log_energy(x, rate)  # three windows see it
        seen = torch.nonzero(energy > energy.min()).squeeze(1).tolist()
        assert seen == [n for n in (frame - 1, frame, frame + 1) if 0 <= n < 50]


def test_energy_is_the_mean_square():
    x = np.full(1600, 0.5)
    assert torch.allclose(log_energy(x), torch.full((10,), float(np.log(0.25))))
    assert torch.isfinite(mfcc(np.zeros(1600))).all()


def test_bad_samples():
    for samples, error, message in (
        (np.zeros((10, 2)), ValueError, r"samples: expected shape \(N,\), got \(10, 2\)"),
        (np.zeros(800, np.int16), TypeError, "samples: expected floating-point"),
        (np.full(800, np.nan), ValueError, "samples: expected finite numbers, got nan"),
        (np.zeros(399), ValueError, r"samples: expected at least 400 \(a window\), got 399"),
    ):
        with pytest.raises(error, match=message):
            mfcc(samples)
    for arguments, message in (
        ({"kind": "plp"}, "kind: expected 'mfcc' or 'log_mel', got 'plp'"),
        ({"num_coefficients": 41}, r"num_coefficients: expected 1\.\.40, got 41"),
        ({"hop": 0.03}, "hop and window: expected a hop"),
        ({"sample_rate": 10}, "hop and window: expected a hop"),
    ):
        with pytest.raises(ValueError, match=message):
            FeatureSettings(**arguments)


def test_a_stream_keeps_its_place_when_samples_are_refused():
    x = read_audio(EXAMPLE)[:4000]
    stream = FeatureStream()
    rows = [stream.push(x[:1000])]
    with pytest.raises(ValueError, match="finite"):
        stream.push(np.full(10, np.inf))
    rows += [stream.push(x[1000:]), stream.flush()]
    assert torch.equal(torch.cat(rows), mfcc(x))
    assert torch.equal(torch.cat([stream.push(x), stream.flush()]), mfcc(x))  # another one
    stream.push(x[:700])
    stream.reset()
    assert stream.push(x[:399]).shape == (1, 13)
    assert stream.flush().shape == (0, 13)  # the whole is less than a window: what came out cannot be called back


def test_latency():
    """A frame is there as soon as the samples of its window are."""
    stream = FeatureStream()
    wait = round(stream.latency * 16_000)
    assert wait == 280
    x = torch.randn(4000) * 0.1
    assert [len(stream.push(x[n : n + 1])) for n in range(160 * 3 + wait)].count(1) == 4
    assert len(FeatureStream().push(x[: wait - 1])) == 0


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "a.wav"
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-0.5, 0.5, 16_000).astype(np.float32), 16_000)
    return path


def test_channels_and_rates(tmp_path):
    seconds = np.arange(44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 440 * seconds)
    soundfile.write(tmp_path / "a.flac", np.stack([tone, np.zeros_like(tone)], 1), 44_100)
    found = read_audio(tmp_path / "a.flac")
    assert found.dtype == torch.float32
    assert found.shape == (16_000,)
    want = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(found[500:-500], want[500:-500], atol=1e-3)
    with pytest.raises(AudioError, match=r"a\.flac has 44100 samples a second, expected 16000$"):
        read_audio(tmp_path / "a.flac", resample=False)


@pytest.mark.parametrize("kept", [43, 44, 46, 1001, 32_043])
def test_truncated_wav(wav, kept):
    wav.write_bytes(wav.read_bytes()[:kept])
    with pytest.raises(AudioError, match=r"a\.wav (is cut short|as sound)"):
        read_audio(wav)


def test_truncated_flac(tmp_path, wav):
    samples, _ = soundfile.read(wav)
    path = tmp_path / "a.flac"
    soundfile.write(path, samples, 16_000)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(AudioError, match=r"a\.flac"):
        read_audio(path)


def test_wav_headers_that_are_fine(wav):
    """Other chunks before and after, and a length that was not known when the header was written."""
    content = wav.read_bytes()
    at = content.index(b"data")
    whole = read_audio(wav)
    odd = content[:at] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + content[at:] + b"junk"
    wav.write_bytes(odd)
    assert torch.equal(read_audio(wav), whole)
    wav.write_bytes(content[: at + 4] + b"\xff\xff\xff\xff" + content[at + 8 :])
    assert torch.equal(read_audio(wav), whole)


def test_bad_audio(tmp_path, wav):
    path = tmp_path / "b.wav"
    with pytest.raises(AudioError, match=r"^no such file: .*b\.wav$"):
        read_audio(path)
    with pytest.raises(AudioError, match=r"^not a file"):
        read_audio(tmp_path)
    for content, message in (
        (b"", "cannot read"),
        (b"not sound", "cannot read"),
        ([0.1, np.nan] * 400, "not finite"),
        (np.zeros(100), r"holds 0\.006 s, expected at least 0\.025 s"),
        (np.zeros(0), r"holds 0\.000 s"),
        (np.zeros(400), "holds no sound: all samples are equal"),
        (np.full(16_000, -0.2), "holds no sound: all samples are equal"),
        (np.tile([[0.3, -0.3], [-0.1, 0.1]], (400, 1)), "holds no sound: all samples are equal"),
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            soundfile.write(path, np.asarray(content, np.float32), 16_000, subtype="FLOAT")
        with pytest.raises(AudioError, match=message) as caught:
            read_audio(path)
        assert "b.wav" in str(caught.value)
        assert "\n" not in str(caught.value)
