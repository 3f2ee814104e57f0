"""The trainable aligner: speech against another system's boundaries, drawn speech against its own, and its life."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import pytorch_hmm
from pytorch_hmm.speech.aligner import PhoneAligner
from pytorch_hmm.speech.audio import read_audio
from pytorch_hmm.speech.corpus import Word, read_transcript
from pytorch_hmm.speech.features import log_energy, mfcc
from pytorch_hmm.speech.phones import UnknownPhone
from pytorch_hmm.speech.settings import AlignerSettings
from tests.helpers.phone_speech import spoken

LIBRIVOX = Path(pytorch_hmm.__file__).parent / "examples" / "librivox"
FEW = AlignerSettings(iterations=3)


def gaps(found, reference):
    """Seconds between the inner boundaries of phones found and those of (start, phone) pairs."""
    assert [segment.label for segment in found] == [phone for _, phone in reference]
    return np.array([segment.start - start for segment, (start, _) in zip(found, reference, strict=True)][1:])


@pytest.fixture(scope="module")
def reader():
    """The five utterances, an aligner trained on them alone, and features it takes."""
    paths = sorted(LIBRIVOX.glob("*.wav"))
    samples = {path.stem: read_audio(path) for path in paths}
    words = {path.stem: read_transcript(path.with_suffix(".phones")) for path in paths}
    features = {name: mfcc(x) for name, x in samples.items()}
    aligner = PhoneAligner()
    told = []
    aligner.fit(features, words, energies={name: log_energy(x) for name, x in samples.items()}, progress=told.append)
    return aligner, aligner.normalise(features), words, told


@pytest.fixture(scope="module")
def drawn():
    """Drawn speech and an aligner trained on it."""
    features, transcripts, starts = spoken(8)
    aligner = PhoneAligner()
    assert aligner.fit(features, transcripts).skipped == {}
    return aligner, aligner.normalise(features), transcripts, starts


def test_a_flat_start_meets_boundaries_of_speech(reader):
    aligner, features, words, _ = reader
    found = []
    for path in sorted(LIBRIVOX.glob("*.ref")):
        rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
        aligned = aligner.align(features[path.stem], words[path.stem])
        found.append(gaps(aligned.phones, [(float(start), phone) for start, _, phone in rows]))
    error = np.abs(np.concatenate(found))
    assert len(error) == 60
    # frames and references are multiples of 10 ms: a little room for rounding
    assert (error < 0.0201).mean() >= 0.5
    assert (error < 0.0501).mean() >= 0.8
    assert abs(np.median(np.concatenate(found))) < 0.0101  # no constant shift


def test_words_hold_their_phones(reader):
    aligner, features, words, _ = reader
    found = aligner.align(features["0880"], words["0880"])
    assert [word.label for word in found.words] == [word.label for word in words["0880"]]
    assert found.words[2].label == "was"
    assert (found.words[2].start, found.words[2].end) == (found.phones[3].start, found.phones[5].end)
    assert all(a.end == b.start for a, b in zip(found.phones, found.phones[1:], strict=False))
    assert all(0 < phone.confidence <= 1 for phone in (*found.phones, *found.words))
    assert found.phones[-1].end == pytest.approx(len(features["0880"]) * 0.01)
    assert len(found.deviations) == len(found.phones)
    assert found.deviations[0] == 0.0
    assert 0 < np.mean(found.deviations) < 0.03


def test_no_iteration_lowers_the_objective_of_its_stage(reader):
    *_, told = reader
    assert [step.iteration for step in told] == list(range(1, len(told) + 1))
    assert told[-1].of == len(told)
    assert {"classes", "phones", "states"} <= {step.stage for step in told}
    for size in range(0, len(told), 10):
        values = np.array([step.objective for step in told[size : size + 10] if step.acoustic_scale == 1.0])
        assert (np.diff(values) >= -1e-9 * np.abs(values[1:])).all(), told[size].stage


def test_drawn_phones_are_found(drawn):
    aligner, features, transcripts, starts = drawn
    for name, x in features.items():
        found = aligner.align(x, transcripts[name]).phones
        frames = np.array([round(segment.start / 0.01) for segment in found])
        assert np.abs(frames - starts[name]).max() <= 1  # slopes see two frames to each side


def test_pauses_are_found_where_transcripts_have_none():
    features, transcripts, starts = spoken(8)
    words = {
        name: [Word("w", (tuple(said[1:6]),)), Word("v", (tuple(said[6:-1]),))] for name, said in transcripts.items()
    }
    aligner = PhoneAligner(FEW)
    aligner.fit(features, words)
    found = aligner.align(aligner.normalise(features)["u000"], words["u000"])
    frames = np.array([round(segment.start / 0.01) for segment in found.phones])
    assert np.abs(frames - starts["u000"][1:-1]).max() <= 1
    assert found.words[-1].end == pytest.approx(0.01 * starts["u000"][-1], abs=0.011)


def test_the_pronunciation_that_was_spoken_is_chosen(drawn):
    aligner, features, transcripts, _ = drawn
    said = transcripts["u001"]
    other = ["S" if phone != "S" else "M" for phone in said[1:6]]
    words = [Word("", (("SIL",),)), Word("w", (tuple(other), tuple(said[1:6]))), *said[6:]]
    found = aligner.align(features["u001"], words)
    assert [segment.label for segment in found.phones] == said
    assert [word.label for word in found.words[:3]] == ["", "w", ""]


def test_training_repeats_bit_for_bit():
    features, transcripts, _ = spoken(2)
    models = []
    for order in (1, -1):
        aligner = PhoneAligner(AlignerSettings(iterations=1))
        aligner.fit(dict(list(features.items())[::order]), transcripts)
        models.append(aligner._learnt.model)
    for one, other in zip(models[0].emission, models[1].emission, strict=True):
        assert torch.equal(one, other)


def test_batches_change_nothing_but_memory():
    features, transcripts, _ = spoken(4)
    found = []
    for frames in (1, 8192):
        aligner = PhoneAligner(AlignerSettings(iterations=1, batch_frames=frames))
        found.append(aligner.fit(features, transcripts).steps)
    for one, other in zip(*found, strict=True):
        assert one.objective == pytest.approx(other.objective, rel=1e-9)


def test_a_rare_phone_stays_like_its_class():
    features, transcripts, _ = spoken(8, phones=("AA", "IY", "EH", "S", "T"))
    rare = dict(transcripts)
    rare["u000"] = ["UW" if i == 3 else phone for i, phone in enumerate(rare["u000"])]
    distances = []
    for weight in (1.0, 1e6):
        aligner = PhoneAligner(AlignerSettings(iterations=1, mean_prior=weight))
        aligner.fit(features, rare)
        inventory, laws, model = aligner._learnt[:3]
        of_phone = laws[inventory.phones.index("UW") * inventory.states]
        of_class = laws[(len(inventory.phones) + inventory.classes.index("vowel")) * inventory.states]
        distances.append(float((model.emission.means[of_phone, 0] - model.emission.means[of_class, 0]).norm()))
    assert distances[1] < 1e-3 < 0.1 < distances[0]


def test_a_phone_that_was_not_heard_is_taken_for_one_of_its_class(drawn):
    aligner, features, transcripts, _ = drawn
    said = [("EH" if phone == "IY" else phone) for phone in transcripts["u000"]]
    assert said != transcripts["u000"]
    with pytest.warns(UserWarning, match="not heard in training are taken for any of their class: EH"):
        found = aligner.align(features["u000"], said)
    assert [segment.label for segment in found.phones] == said
    with pytest.raises(UnknownPhone, match=r"unknown phone 'XX'; known: AA AE .*ZH"):
        aligner.align(features["u000"], ["SIL", "XX", "SIL"])


def test_stress_and_case_do_not_make_other_phones():
    features, transcripts, _ = spoken(3, phones=("AA", "S"))
    said = {
        name: [f"{p.lower()}{i % 3}" if p == "AA" else p.lower() for i, p in enumerate(x)]
        for name, x in transcripts.items()
    }
    aligner = PhoneAligner(AlignerSettings(iterations=1))
    aligner.fit(features, said)
    assert aligner.phones == ["AA", "S", "SIL"]
    found = aligner.align(aligner.normalise(features)["u000"], said["u000"])
    assert [segment.label for segment in found.phones] == said["u000"]


def test_classes_of_ones_own():
    features, transcripts, _ = spoken(3, phones=("a", "ʃ"))
    settings = AlignerSettings(iterations=1, classes={"a": "open", "*": "other"})
    aligner = PhoneAligner(settings)
    aligner.fit(features, transcripts)
    assert aligner.phones == ["SIL", "a", "ʃ"]
    with pytest.raises(ValueError, match="unknown phone 'ʃ'; known: AA"):
        PhoneAligner(FEW).fit(features, transcripts)


def test_states_and_gaussians_come_where_frames_are():
    features, transcripts, _ = spoken(12, phones=("AA", "S"))
    # about 100 frames: enough for one Gaussian, not for one a state
    transcripts = {name: ["T" if i == 3 else p for i, p in enumerate(said)] for name, said in transcripts.items()}
    aligner = PhoneAligner(AlignerSettings(iterations=3, frames_per_gaussian=75.0, max_mixtures=2))
    report = aligner.fit(features, transcripts)
    inventory, laws, model = aligner._learnt[:3]
    sizes = {}
    for i, phone in enumerate(inventory.phones):
        own = laws[3 * i : 3 * i + 3]
        sizes[phone] = len(set(own)), int((model.emission.log_weights[list(own)] > -math.inf).sum(-1).max())
    assert sizes["AA"] == (3, 2)
    assert sizes["T"] == (1, 1)
    assert report.steps[-1].stage == "mixtures"
    torch.testing.assert_close(model.emission.log_weights.exp().sum(-1), torch.ones(len(model.log_stay)).double())
    torch.testing.assert_close(model.log_stay.exp().sum(-1), torch.ones(len(model.log_stay)).double())


def test_what_cannot_be_used_is_left_out_with_its_reason():
    features, transcripts, _ = spoken(8)
    features["u001"] = features["u001"][:20]
    transcripts["u002"] = ["SIL", "QQ", "SIL"]
    features["u003"][5, 1] = math.nan
    transcripts["u004"] = []
    del transcripts["u005"]
    report = PhoneAligner(AlignerSettings(iterations=1)).fit(features, transcripts)
    assert report.num_utterances == 3
    assert report.skipped["u001"] == "the transcript needs at least 36 frames (0.36 s), the recording has 20 (0.20 s)"
    assert report.skipped["u002"].startswith("unknown phone 'QQ'; known: AA ")
    assert report.skipped["u003"] == "features: expected finite numbers, got others"
    assert report.skipped["u004"] == "the transcript has no phones, or a word without any"
    assert report.skipped["u005"] == "it has no transcript"
    with pytest.raises(ValueError, match="at least one utterance that can be used; u005: it has no transcript"):
        PhoneAligner().fit({"u005": features["u005"]}, transcripts)
    with pytest.raises(ValueError, match="at least one utterance that can be used; there is none"):
        PhoneAligner().fit({}, {})


def test_errors_of_align(reader):
    aligner, features, words, _ = reader
    x = features["0880"]
    with pytest.raises(ValueError, match=r"needs at least 84 frames \(0.84 s\), the recording has 50 \(0.50 s\)"):
        aligner.align(x[:50], words["0880"])
    with pytest.raises(ValueError, match=r"x: expected shape \(T, 39\), as normalise makes it, got \(299, 13\)"):
        aligner.align(x[:, :13], words["0880"])
    with pytest.raises(TypeError, match="words: expected a list of words"):
        aligner.align(x, "HH IY")
    with pytest.raises(RuntimeError, match="the aligner is not trained"):
        PhoneAligner().align(x, words["0880"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("states", 0), ("iterations", 0), ("acoustic_scales", (0.1, 0.0)), ("variance_prior", 2.0), ("pauses", "often")],
)
def test_settings_that_make_no_sense_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        AlignerSettings(**{name: value})


def test_saved_and_loaded_it_aligns_the_same(reader, tmp_path):
    aligner, features, words, _ = reader
    path = tmp_path / "aligner.safetensors"
    aligner.save(path)
    loaded = PhoneAligner.load(path)
    assert loaded.settings == aligner.settings
    assert loaded.align(features["0930"], words["0930"]) == aligner.align(features["0930"], words["0930"])
    assert PhoneAligner.is_file(path)
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes()[:-100])
    assert not PhoneAligner.is_file(other)
    with pytest.raises(ValueError, match="damaged or something else"):
        PhoneAligner.load(other)
    with pytest.raises(FileNotFoundError):
        PhoneAligner.load(tmp_path / "none")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_settings_survive_json():
    settings = AlignerSettings(classes={"a": "b"}, states=2)
    assert AlignerSettings.of(json.loads(json.dumps(asdict(settings)))) == settings


def test_the_phone_loop_is_a_model_of_the_same_phones(reader):
    aligner, features, words, _ = reader
    hmm, names, settings, delta_window, mean, scale = aligner.phone_loop()
    assert names[::3] == aligner.phones
    assert settings == aligner.settings.features
    assert delta_window == 2
    assert mean.shape == scale.shape == (39,)
    torch.testing.assert_close(hmm.log_transition.exp().sum(-1), torch.ones(len(names)).to(hmm.log_transition))
    states, _ = hmm.viterbi_decode(features["0880"])
    heard = [names[state] for state in states.tolist()]
    said = aligner.align(features["0880"], words["0880"]).phones
    true = [phone.label for phone in said for _ in range(round((phone.end - phone.start) / 0.01))]
    assert np.mean([a == b for a, b in zip(heard, true, strict=True)]) > 0.6


def test_what_the_callback_raises_ends_training():
    features, transcripts, _ = spoken(2)
    aligner = PhoneAligner(AlignerSettings(iterations=1))

    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        aligner.fit(features, transcripts, progress=stop)
    assert aligner.phones == []


def test_the_most_likely_start_goes_on():
    features, transcripts, _ = spoken(3)
    ends = {}
    for scales in ((0.02,), (1.0,), (0.02, 1.0), (1.0, 0.02)):
        steps = PhoneAligner(AlignerSettings(iterations=1, acoustic_scales=scales)).fit(features, transcripts).steps
        of_classes = [step.log_likelihood for step in steps if step.stage == "classes"][1::2]
        ends[scales] = of_classes, steps[-1].log_likelihood
    (first,), (second,) = ends[0.02,][0], ends[1.0,][0]
    assert first != pytest.approx(second, rel=1e-6)
    assert ends[0.02,][1] != pytest.approx(ends[1.0,][1], rel=1e-6)
    best = ends[0.02,] if first > second else ends[1.0,]
    for scales in ((0.02, 1.0), (1.0, 0.02)):
        assert ends[scales][0] == pytest.approx([ends[scale,][0][0] for scale in scales], rel=1e-9)
        assert ends[scales][1] == pytest.approx(best[1], rel=1e-9)
