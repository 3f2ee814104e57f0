"""Speech that was never spoken: frames drawn from phones' own Gaussians, whose boundaries are known."""

from __future__ import annotations

import numpy as np
import torch

PHONES = ("AA", "IY", "S", "T", "M", "L")


def spoken(num_utterances, *, dim=4, seed=0, phones=PHONES, gap=5.0, num_phones=10, mean_frames=9):
    """Features (T, dim), transcripts with silence at both ends, and first frames, of each utterance by its name."""
    rng = np.random.default_rng(seed)
    means = {phone: gap * rng.standard_normal(dim) for phone in phones}
    means["SIL"] = np.full(dim, -2.5 * gap)
    features, transcripts, starts = {}, {}, {}
    for i in range(num_utterances):
        said = ["SIL"]
        while len(said) <= num_phones:  # no phone twice in a row, where no boundary could be told
            said += [p for p in [phones[rng.integers(len(phones))]] if p != said[-1]]
        said.append("SIL")
        frames = 3 + rng.poisson(mean_frames - 3, len(said))
        name = f"u{i:03d}"
        x = [means[phone] + rng.standard_normal((n, dim)) for phone, n in zip(said, frames, strict=True)]
        features[name] = torch.tensor(np.concatenate(x), dtype=torch.float32)
        transcripts[name], starts[name] = said, np.concatenate([[0], frames.cumsum()[:-1]])
    return features, transcripts, starts
