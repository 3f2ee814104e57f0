"""Commands: `python -m pytorch_hmm demo`, `align` and `stream`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it worked, 1 for a part of it, 2 for input that cannot be used, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m pytorch_hmm", description="Hidden Markov models for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    _demo(commands)
    _align(commands)
    _stream(commands)
    given = parser.parse_args(arguments)
    if sys.stderr is None:  # closed: what is told goes nowhere
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    run: Callable[[argparse.Namespace], int] = given.run
    try:
        return run(given)
    except _Unusable as error:
        sys.stderr.write(f"pytorch_hmm: {error}\n")
        return 2
    except ModuleNotFoundError as missing:
        extra = "audio,plot" if given.command == "demo" else "speech"
        sys.stderr.write(f"pytorch_hmm: {given.command} needs {missing.name}: pip install 'pytorch-hmm[{extra}]'\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("pytorch_hmm: interrupted\n")
        return 130


class _Unusable(Exception):
    """One line."""


def _demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser("demo", help="train, decode and stream a left-to-right model on speech")
    demo.add_argument("--wav", type=Path, help="a sound file of your own; default one sentence of CMU ARCTIC")
    demo.add_argument("--states", type=int, help="number of states; default one a phone, or one per 80 ms")
    demo.add_argument("--mixtures", type=int, default=2, help="Gaussians in each state's mixture (%(default)s)")
    demo.add_argument("--iterations", type=int, default=30, help="iterations of EM (%(default)s)")
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder of the picture (%(default)s)")

    def run(given: argparse.Namespace) -> int:
        from .demo import DemoError, run

        try:
            run(given.wav, given.states, given.mixtures, given.iterations, given.out)
        except DemoError as error:
            raise _Unusable(error) from None
        return 0

    demo.set_defaults(run=run)


def _align(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    align = commands.add_parser(
        "align",
        help="train phone models on a corpus and align its transcripts",
        description="Train phone models on recordings and their transcripts alone, and align these. Beside NAME.wav or "
        "NAME.flac stands NAME.phones (a line a word: the word, a tab, its phones), NAME.lab with times (HTK; its "
        "phones are taken), or NAME.lab or NAME.txt with words, which --lexicon spells. Subfolders are speakers. "
        "A run that was interrupted goes on where it was. Status: 0 all aligned, 1 some not, 2 unusable input.",
    )
    align.add_argument("corpus", type=Path, help="folder of recordings and transcripts")
    align.add_argument("--out", type=Path, required=True, help="folder of labels, pictures, the model and summary.csv")
    align.add_argument("--lexicon", type=Path, help="a line a pronunciation: the word, then its phones")
    align.add_argument("--classes", type=Path, help="a line a phone, it and its broad class; default those of ARPAbet")
    align.add_argument("--silence", default="SIL", help="the phone of silences (%(default)s)")
    align.add_argument("--model", type=Path, help="a model trained before, instead of training")
    align.add_argument(
        "--format",
        default="textgrid",
        help="of labels, one or more of textgrid, ctm, htk, with commas (%(default)s)",
    )
    align.add_argument("--iterations", type=int, help="iterations of EM in each stage of training (10)")
    align.add_argument("--resample", action="store_true", help="convert recordings of another sample rate")
    align.add_argument(
        "--jobs", type=int, help="processes at most that read, align and draw (the cores that this one may use)"
    )
    align.add_argument("--no-pictures", action="store_true", help="draw none")

    def run(given: argparse.Namespace) -> int:
        from .speech.align import AlignError, AlignOptions, run

        try:
            return run(AlignOptions.of(given))
        except AlignError as error:
            raise _Unusable(error) from None

    align.set_defaults(run=run)


def _stream(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    stream = commands.add_parser(
        "stream",
        help="decode raw sound on standard input, states on standard output",
        description="Read 16-bit little-endian samples, one channel, on standard input, and print a line a frame as "
        "states become final: seconds, state and, unless paths are decoded, its probability, with tabs between.",
    )
    stream.add_argument("--model", type=Path, required=True, help="a model of align, or any HMM that was saved")
    stream.add_argument("--rate", type=int, default=16_000, help="samples a second (%(default)s)")
    stream.add_argument(
        "--decode", choices=["viterbi", "posterior", "filter"], default="viterbi", help="what is decoded (%(default)s)"
    )
    stream.add_argument("--chunk", type=int, default=16, help="frames decoded at once (%(default)s)")
    stream.add_argument("--look-ahead", type=int, help="with --decode posterior: frames it waits for (20)")
    stream.add_argument(
        "--max-delay",
        type=int,
        help="with --decode viterbi: frames after which a state is final at the latest, 0 for no limit (200)",
    )
    stream.add_argument(
        "--features", choices=["mfcc", "log_mel"], help="of an HMM that was saved: what its observations are"
    )
    stream.add_argument("--deltas", action="store_true", help="with --features: and their two derivatives")
    stream.add_argument("--changes", action="store_true", help="print a line only where the state changes")

    def run(given: argparse.Namespace) -> int:
        from .speech.stream import StreamError, StreamOptions, run

        try:
            return run(StreamOptions.of(given))
        except StreamError as error:
            raise _Unusable(error) from None

    stream.set_defaults(run=run)


if __name__ == "__main__":
    sys.exit(main())
