"""Commands: `python -m pytorch_hmm demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it worked, 2 when its input could not be used."""
    parser = argparse.ArgumentParser(prog="python -m pytorch_hmm", description="Hidden Markov models for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="train, decode and stream a left-to-right model on speech")
    demo.add_argument("--wav", type=Path, help="a sound file of your own; default one sentence of CMU ARCTIC")
    demo.add_argument("--states", type=int, help="number of states; default one a phone, or one per 80 ms")
    demo.add_argument("--mixtures", type=int, default=2, help="Gaussians in each state's mixture (%(default)s)")
    demo.add_argument("--iterations", type=int, default=30, help="iterations of EM (%(default)s)")
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder of the picture (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        from .demo import DemoError, run
    except ModuleNotFoundError as missing:
        return _fail(f"the demo needs {missing.name}: pip install 'pytorch-hmm[audio,plot]'")
    try:
        run(given.wav, given.states, given.mixtures, given.iterations, given.out)
    except DemoError as error:
        return _fail(str(error))
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(f"pytorch_hmm: {message}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
