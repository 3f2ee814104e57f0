"""`align` from files to files, and what it does of bad files, full disks, and a process that is killed."""

from __future__ import annotations

import contextlib
import csv
import errno
import io as io_of_text
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pytorch_hmm import io
from pytorch_hmm.__main__ import main
from pytorch_hmm.speech import workers
from pytorch_hmm.speech.labels import read_ctm, read_htk, read_textgrid
from pytorch_hmm.speech.outputs import Outputs
from tests.helpers.speech import WORDS, utterance, write_utterance

UTTERANCES = {
    "anna/1": ["<sil>", "ma", "see", "<sil>"],
    "anna/2": ["<sil>", "sam", "me", "<sil>"],
    "bert/1": ["<sil>", "see", "ma", "<sil>"],
    "bert/2": ["<sil>", "me", "sam", "ma", "<sil>"],
}
FORMATS = ("--format", "textgrid,ctm,htk")
FAST = ("--iterations", "2")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """So that sums are those of the subprocesses, which get one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for seed, (name, words) in enumerate(UTTERANCES.items()):
        write_utterance(folder, name, words, seed)
    return folder


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """What a run that nothing disturbs writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(["align", str(corpus), "--out", str(out), *FORMATS, *FAST]) == 0
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def summary(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="") as file:
        return {row["utterance"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", UTTERANCES)
def test_what_is_written(whole, corpus, name):
    duration = soundfile.info(corpus / f"{name}.wav").duration
    grid = read_textgrid(whole / f"{name}.TextGrid")
    assert list(grid.tiers) == ["words", "phones"]
    assert grid.end == duration
    words, phones = grid.tiers["words"], grid.tiers["phones"]
    assert [word.label for word in words] == UTTERANCES[name]
    for tier in (words, phones):
        assert (tier[0].start, tier[-1].end) == (0, duration)
        assert all(a.end == b.start for a, b in pairwise(tier))
    assert [row[:3] for row in read_htk(whole / f"{name}.lab")] == [row[:3] for row in phones]
    assert [row[:3] for row in read_htk(whole / f"{name}.lab", 2)] == [row[:3] for row in words]
    for tier, found in (("words", words), ("phones", phones)):
        (rows,) = read_ctm(whole / f"{name}.{tier}.ctm").values()
        assert [row.label for row in rows] == [row.label for row in found]
        assert all(abs(a.start - b.start) < 1e-3 and 0 <= a.confidence <= 1 for a, b in zip(rows, found, strict=True))
    picture = (whole / f"{name}.png").read_bytes()
    assert (picture[:4], picture[-8:-4]) == (b"\x89PNG", b"IEND")
    row = summary(whole)[name]
    assert row["status"] == "aligned"
    assert float(row["seconds"]) == pytest.approx(duration, abs=1e-3)
    assert 0 < float(row["confidence"]) <= 1


def test_boundaries_are_where_the_sound_changes(whole):
    """Phones this distinct are found within 20 ms."""
    gaps = []
    for seed, (name, words) in enumerate(UTTERANCES.items()):
        _, wanted = utterance(words, seed)
        phones = read_textgrid(whole / f"{name}.TextGrid").tiers["phones"]
        assert [phone.label for phone in phones] == [phone for phone, _, _ in wanted]
        gaps += [abs(phone.start - start) for phone, (_, start, _) in zip(phones, wanted, strict=True)]
    assert sum(gap < 0.0201 for gap in gaps) / len(gaps) > 0.9


def test_a_second_run_does_what_is_missing(whole, corpus, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.is_file()}
    (out / "anna" / "2.lab").unlink()
    assert main(["align", str(corpus), "--out", str(out), *FORMATS, *FAST]) == 0
    assert files(out) == files(whole)
    again = {str(path.relative_to(out)) for path in before if path.stat().st_mtime_ns != before[path]}
    assert again == {
        "summary.csv",
        ".align/finished/anna/2.json",
        *(f"anna/2{ending}" for ending in (".TextGrid", ".words.ctm", ".phones.ctm", ".lab", ".png")),
    }
    assert "training" not in capsys.readouterr().err


def test_a_changed_corpus_is_done_again(corpus, tmp_path, capsys):
    changed, out = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(corpus, changed)
    command = ["align", str(changed), "--out", str(out), *FAST, "--no-pictures"]
    assert main(command) == 0
    before = files(out)
    write_utterance(changed, "bert/2", ["<sil>", "sam", "<sil>"], 9)
    assert main(command) == 0
    assert "training" in capsys.readouterr().err
    after = files(out)
    assert before.keys() == after.keys()
    for name in ("model.safetensors", ".align/model.json", ".align/finished/anna/1.json", "bert/2.TextGrid"):
        assert before[name] != after[name]
    fresh = tmp_path / "fresh"
    assert main(["align", str(changed), "--out", str(fresh), *FAST, "--no-pictures"]) == 0
    assert files(fresh) == after


def test_bad_files_are_named_and_passed_over(whole, corpus, tmp_path, capsys):
    """Cut short, another rate, an unknown phone, no words, more words than sound, no transcript, no sound."""
    folder, out = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(corpus, folder)
    sentence = UTTERANCES["anna/1"]
    for name in ("cut", "rate", "phone", "empty", "long", "alone", "noise", "zero"):
        write_utterance(folder, f"anna/{name}", sentence, 5, 8000 if name == "rate" else 16_000)
    cut = folder / "anna" / "cut.wav"
    cut.write_bytes(cut.read_bytes()[:9001])
    (folder / "anna" / "phone.phones").write_text("<sil>\tSIL\nqu\tQX\n")
    (folder / "anna" / "empty.phones").write_text("\n")
    (folder / "anna" / "long.phones").write_text("sam\tS AA M\n" * 60)
    (folder / "anna" / "alone.phones").unlink()
    (folder / "anna" / "noise.wav").write_bytes(b"no sound")
    soundfile.write(folder / "anna" / "zero.wav", np.zeros(16_000), 16_000)
    for number in range(7):
        (folder / f"{number}.phones").write_text("<sil>\tSIL\n")
    model = whole / "model.safetensors"
    assert main(["align", str(folder), "--out", str(out), "--model", str(model), "--no-pictures"]) == 1
    captured = capsys.readouterr()
    seconds = sum(soundfile.info(corpus / f"{name}.wav").duration for name in UTTERANCES)
    assert f"aligned                 4 of 12 recordings, {seconds:.1f} s of sound\n" in captured.out
    orphans = "0.phones, 1.phones, 2.phones, 3.phones, 4.phones and 2 more"
    assert f"warning: 7 transcripts have no recording: {orphans}\n" in captured.err
    rows = summary(out)
    assert {name for name, row in rows.items() if row["status"] == "aligned"} == set(UTTERANCES)
    for name, words in {
        "cut": ["cut.wav is cut short"],
        "rate": ["rate.wav has 8000 samples a second, expected 16000"],
        "phone": ["unknown phone", "'QX'"],
        "empty": ["empty.phones is empty"],
        "long": ["frames"],
        "alone": ["no transcript beside it"],
        "noise": ["cannot read", "noise.wav as sound"],
        "zero": ["no sound: all samples are equal"],
    }.items():
        row = rows[f"anna/{name}"]
        assert row["status"] == "failed"
        assert all(word in row["reason"] for word in words), row["reason"]
        assert f"skipped anna/{name}: {row['reason']}\n" in captured.err
        assert not list(out.glob(f"anna/{name}.*"))
    for name in UTTERANCES:  # what is passed over has no part in the speakers' means either
        assert (out / f"{name}.TextGrid").read_bytes() == (whole / f"{name}.TextGrid").read_bytes()
        assert rows[name] == summary(whole)[name]
    assert main(["align", str(folder), "--out", str(out), "--model", str(model), "--no-pictures", "--resample"]) == 1
    assert summary(out)["anna/rate"]["status"] == "aligned"


def test_files_of_what_fails_now_are_withdrawn_until_it_is_mended(whole, corpus, tmp_path, capsys):
    """With them goes what an earlier run wrote in other formats of a recording that comes out otherwise."""
    folder, out = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(corpus, folder)
    shutil.copytree(whole, out)
    mine = out / "anna" / "2.notes"
    mine.write_text("not this tool's")
    sound = folder / "anna" / "2.wav"
    content = sound.read_bytes()
    sound.write_bytes(content[:9001])
    command = ["align", str(folder), "--out", str(out), "--model", str(whole / "model.safetensors")]
    assert main([*command, "--no-pictures"]) == 1
    withdrawn = out / ".align" / "withdrawn"
    told = f"warning: 1 recording failed, but not before: the old files are in {withdrawn}\n"
    assert told in capsys.readouterr().err
    assert summary(out)["anna/2"]["status"] == "failed"
    assert [*out.glob("anna/2.*")] == [mine]
    endings = (".TextGrid", ".words.ctm", ".phones.ctm", ".lab", ".png")
    before = {name: content for name, content in files(whole).items() if name.startswith("anna/")}
    others = {f"anna/1{ending}" for ending in endings[1:]}  # its speaker's mean is another now
    moved = {f"anna/2{ending}" for ending in endings} | others
    assert {name: before[name] for name in moved} == {
        name: content for name, content in files(withdrawn).items() if name != "anna/2.json"
    }
    assert files(out)["bert/1.png"] == files(whole)["bert/1.png"]
    assert main([*command, "--no-pictures"]) == 1  # is told once
    assert told not in capsys.readouterr().err
    kept = (withdrawn / "anna" / "2.TextGrid").stat().st_mtime_ns
    sound.write_bytes(content)
    mine.unlink()
    assert main([*command, *FORMATS]) == 0
    assert (out / "anna" / "2.TextGrid").stat().st_mtime_ns == kept
    assert {name for name in files(withdrawn)} == others
    shutil.rmtree(withdrawn)
    assert files(out) == files(whole)


def test_workers_write_what_one_process_writes(whole, corpus, tmp_path, monkeypatch, capsys):
    """The trained model is there already, as after an interruption."""
    folder, out = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(corpus, folder)
    for name in ("a", "z"):
        write_utterance(folder, f"anna/{name}", ["<sil>"], 5)
    (folder / "anna" / "a.phones").write_text("qu\tQX\n")
    (folder / "anna" / "z.wav").write_bytes(b"no sound")
    (out / ".align").mkdir(parents=True)
    for name in ("model.safetensors", ".align/model.json"):
        shutil.copy(whole / name, out / name)
    started, make = [], workers.ProcessPoolExecutor
    # one process is enough
    monkeypatch.setattr(workers, "ProcessPoolExecutor", lambda size, *how: started.append(size) or make(1, *how))
    monkeypatch.setattr(workers, "WORTH", -math.inf)
    assert main(["align", str(folder), "--out", str(out), *FORMATS, *FAST, "--jobs", "2"]) == 1
    assert started == [2, 2]
    skipped = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped")]
    assert [line.split(":")[0] for line in skipped] == ["skipped anna/a", "skipped anna/z"]
    written, wanted = files(out), files(whole)
    assert written.pop("summary.csv") != wanted["summary.csv"]
    assert written == {name: content for name, content in wanted.items() if name != "summary.csv"}


def test_words_by_a_lexicon(tmp_path, corpus, capsys):
    folder, out = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(corpus, folder)
    for name, words in UTTERANCES.items():
        (folder / f"{name}.phones").unlink()
        (folder / f"{name}.txt").write_text(" ".join(word for word in words if word != "<sil>").upper() + ".")
    (folder / "anna" / "2.txt").write_text("Sam met me.")
    lexicon = folder / "lexicon.txt"
    lexicon.write_text("ma M AA\nsee S IY\nsam S AA M\nsam(2) S IY M\nme M IY\n")
    assert main(["align", str(folder), "--out", str(out), "--lexicon", str(lexicon), *FAST, "--no-pictures"]) == 1
    assert "no recording" not in capsys.readouterr().err
    assert "the lexicon lacks 'met'" in summary(out)["anna/2"]["reason"]
    tiers = read_textgrid(out / "bert" / "2.TextGrid").tiers
    assert [word.label for word in tiers["words"]] == ["ME", "SAM", "MA"]
    assert [phone.label for phone in tiers["phones"] if phone.label != "SIL"] == ["M", "IY", "S", "AA", "M", "M", "AA"]


def test_phones_of_other_alphabets(tmp_path, corpus, capsys):
    """Their classes come from a file; a phone that is not in it is unknown. HTK's labels serve as phones."""
    folder, out, classes = tmp_path / "corpus", tmp_path / "out", tmp_path / "classes"
    shutil.copytree(corpus, folder)
    named = {"AA": "a", "IY": "i", "M": "m", "S": "s", "SIL": "pau"}
    for name, words in UTTERANCES.items():
        (folder / f"{name}.phones").unlink()
        phones = [named[phone] for word in words for phone in WORDS[word]]
        lines = [f"{n} {n + 1} x^x-{phone}+x=x@1\n" for n, phone in enumerate(phones)]
        (folder / f"{name}.lab").write_text("".join(lines))
    (folder / "anna" / "2.lab").write_text("0 1 pau\n1 2 y\n")
    classes.write_text("a vowel\ni vowel\nm nasal\ns fricative\n")
    options = ("--classes", str(classes), "--silence", "pau", *FAST, "--no-pictures")
    assert main(["align", str(folder), "--out", str(out), *options]) == 1
    assert "unknown phone 'y'" in summary(out)["anna/2"]["reason"]
    tiers = read_textgrid(out / "bert" / "1.TextGrid").tiers
    assert list(tiers) == ["phones"]
    assert [phone.label for phone in tiers["phones"]] == ["pau", "s", "i", "m", "a", "pau"]
    capsys.readouterr()


def test_a_phone_not_heard_in_training(tmp_path, whole, capsys):
    folder, out = tmp_path / "corpus", tmp_path / "out"
    write_utterance(folder, "a", UTTERANCES["anna/1"], 7)
    path = folder / "a.phones"
    path.write_text(path.read_text().replace("M AA", "N AA"))
    command = ["align", str(folder), "--out", str(out), "--model", str(whole / "model.safetensors"), "--no-pictures"]
    assert main(command) == 0
    assert "a: phones not heard in training are taken for any of their class: N\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{missing}", "--out", "{out}"], "no such folder: "),
        (["{empty}", "--out", "{out}"], "no .wav or .flac files in "),
        (["{corpus}", "--out", "{corpus}"], "--out: expected another folder than the corpus"),
        (["{corpus}", "--out", "{file}/out"], "--out: cannot write to "),
        (["{corpus}", "--out", "{out}", "--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (
            ["{corpus}", "--out", "{out}", "--format", "praat"],
            "--format: expected some of textgrid, ctm, htk, got 'praat'",
        ),
        (["{corpus}", "--out", "{out}", "--lexicon", "{missing}"], "No such file"),
        (["{corpus}", "--out", "{out}", "--lexicon", "{file}"], "--lexicon: "),
        (["{corpus}", "--out", "{out}", "--model", "{missing}"], "--model: "),
        (["{corpus}", "--out", "{out}", "--model", "{file}"], "--model: "),
        (["{corpus}", "--out", "{out}", "--iterations", "-1"], "iterations: expected an integer of at least 1"),
        (["{corpus}", "--out", "{out}", "--classes", "{missing}"], "missing: No such file"),
        (["{corpus}", "--out", "{out}", "--classes", "{file}"], "--classes: "),
        (["{bad}", "--out", "{out}"], "no recording in "),
        (["{corpus}", "--out", "{out}", "--silence", ""], "silence: expected the name of a phone"),
    ],
)
def test_unusable_input(corpus, tmp_path, arguments, message, capsys):
    places = {"missing": tmp_path / "missing", "out": tmp_path / "out", "corpus": corpus}
    for name in ("empty", "bad"):
        places[name] = tmp_path / name
        places[name].mkdir()
    (tmp_path / "bad" / "a.wav").write_bytes(b"")
    places["file"] = tmp_path / "file"
    places["file"].write_bytes(b"\n")
    assert main(["align", *(argument.format(**places) for argument in arguments), "--no-pictures"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("pytorch_hmm: ")
    assert message in last
    assert "Traceback" not in captured.err


def test_the_table_is_there_where_nothing_was_usable(tmp_path, capsys):
    """An orphan is told once, and no reason to fail."""
    folder, out = tmp_path / "corpus", tmp_path / "out"
    for name, phones in (("long", "S AA M " * 99), ("phone", "QX")):
        write_utterance(folder, name, UTTERANCES["anna/1"], 0)
        (folder / f"{name}.phones").write_text(f"word\t{phones}\n")
    (folder / "alone.wav").touch()
    (folder / "orphan.phones").touch()
    assert main(["align", str(folder), "--out", str(out)]) == 2
    rows = summary(out)
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(("alone", "long", "phone"), "failed")
    for name, reason in (("alone", "no transcript"), ("long", "frames"), ("phone", "unknown phone")):
        assert reason in rows[name]["reason"]
    assert not (out / "model.safetensors").exists()
    assert "warning: 1 transcript has no recording: orphan.phones\n" in capsys.readouterr().err


def test_one_process_a_folder(corpus, tmp_path, capsys):
    with contextlib.closing(Outputs(tmp_path / "out")):
        assert main(["align", str(corpus), "--out", str(tmp_path / "out"), *FAST]) == 2
    assert "another process writes to" in capsys.readouterr().err


def test_ctrl_c(corpus, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pytorch_hmm.speech.utterance.save_figure", stop)
    assert main(["align", str(corpus), "--out", str(tmp_path / "out"), *FAST]) == 130
    assert capsys.readouterr().err.endswith("pytorch_hmm: interrupted\n")


def subprocess_of(arguments, limit=None):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "pytorch_hmm", *map(str, arguments)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if limit:  # not by preexec_fn, whose fork JAX warns of where another test has started it
        import resource

        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    return process


def check_nothing_is_half_written(out: Path, whole: Path, is_killed: bool = False) -> None:
    """Every file there is as the undisturbed run writes it, but for what a killed process had not yet named."""
    wanted = files(whole)
    for name, content in files(out).items():
        if not (is_killed and name.endswith(".part")):
            assert content == wanted[name], name


def test_killed_in_the_middle(corpus, whole, tmp_path):
    out = tmp_path / "out"
    command = ["align", corpus, "--out", out, *FORMATS, *FAST]
    process = subprocess_of(command)
    try:
        until = time.monotonic() + 120
        while not (done := list(out.rglob("finished/*/*.json"))):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(done) < len(UTTERANCES), "nothing was left to do"
    check_nothing_is_half_written(out, whole, is_killed=True)
    (out / "anna" / ".1.png.0123abcd.part").write_bytes(b"half")  # as if it had been writing
    kept = {path: path.stat().st_mtime_ns for path in (out / "model.safetensors", *done)}
    assert main([str(argument) for argument in command]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert files(out) == files(whole)


def test_what_was_done_stands_where_it_cannot_be_printed(corpus, whole, monkeypatch, capsys):
    class Broken(io_of_text.StringIO):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def write(self, _):
            raise OSError(self.number, os.strerror(self.number))

    command = ["align", str(corpus), "--out", str(whole), *FORMATS, *FAST]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Broken(errno.EPIPE))
        assert main(command) == 0
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Broken(errno.ENOSPC))
        assert main(command) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pytorch_hmm: cannot print what was done: No space left on device; it is done")
    with monkeypatch.context() as patched:
        for name in ("stdout", "stderr"):
            patched.setattr(sys, name, None)
        assert main(command) == 0
        sys.stderr.close()


def test_names_that_matplotlib_takes_for_more(tmp_path, whole, capsys):
    """Formulas, and letters that its font lacks."""
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    write_utterance(corpus, r"a$\frac$ 漢", UTTERANCES["anna/1"], 0)
    assert main(["align", str(corpus), "--out", str(out), "--model", str(whole / "model.safetensors")]) == 0
    assert (out / "a$\\frac$ 漢.png").is_file()
    assert "Glyph" not in capsys.readouterr().err


@contextlib.contextmanager
def small_disk(folder: Path, size: int):
    """A tmpfs of so many bytes, where this process may mount one; else None."""
    folder.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if mounted:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False, capture_output=True
        )
        mounted = made.returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def test_a_full_disk(corpus, whole, tmp_path, capsys):
    """A disk with room for some of the files; where none can be mounted, files may not grow as large as pictures."""
    with small_disk(tmp_path / "disk", 160 * 1024) as is_mounted:
        out = tmp_path / "disk" / "out"
        command = ["align", str(corpus), "--out", str(out), *FORMATS, *FAST]
        if is_mounted:
            status, error = main(command), capsys.readouterr().err
        else:
            process = subprocess_of(command, limit=20_000)
            error = process.communicate()[1]
            status = process.returncode
        assert status == 2
        assert error.splitlines()[-1].startswith(f"pytorch_hmm: --out: cannot write to {out}: ")
        assert ("No space left on device" if is_mounted else "File too large") in error
        assert "Traceback" not in error
        check_nothing_is_half_written(out, whole)
        assert not list(out.rglob(".*.part"))
        if is_mounted:
            subprocess.run(["mount", "-o", "remount,size=8m", str(tmp_path / "disk")], check=True)
        assert main(command) == 0
        assert files(out) == files(whole)


@pytest.mark.parametrize("after", range(0, 27, 4))
def test_a_disk_that_fills_up_at_any_time(corpus, whole, tmp_path, monkeypatch, after, capsys):
    """The model is there already, so that each case is quick."""
    out = tmp_path / "out"
    (out / ".align").mkdir(parents=True)
    for name in ("model.safetensors", ".align/model.json"):
        shutil.copy(whole / name, out / name)
    left, fsync = [after], os.fsync

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    command = ["align", str(corpus), "--out", str(out), *FORMATS, *FAST]
    monkeypatch.setattr("pytorch_hmm.speech.utterance.save_figure", lambda figure, path: io.replace(path, b"picture"))
    monkeypatch.setattr(io.os, "fsync", full)
    is_enough = after >= 4 * 6 + 1
    assert main(command) == (0 if is_enough else 2)
    for name, content in files(out).items():
        assert content == files(whole)[name] or name.endswith(".png"), name
    assert len(list(out.rglob("finished/*/*.json"))) == min(4, after // 6)
