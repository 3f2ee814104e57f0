"""What an aligner has learnt: in files, and as an HMM of phones in any order."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor

from hmm_functional.emissions import MixtureParameters

from ..io import read, write
from ..mixture import MixtureGaussianHMM
from .deltas import Normaliser
from .embedded import Acoustics
from .features import FeatureSettings
from .settings import AlignerSettings
from .training import Inventory

FORMAT = "pytorch-hmm aligner 1"


class Learnt(NamedTuple):
    """What `PhoneAligner.fit` found."""

    inventory: Inventory
    laws: tuple[int, ...]
    """(V,), the law of each column."""
    model: Acoustics
    visits: Tensor
    """(L,): how often states of each law were left in training."""
    average: Normaliser
    """Of all frames of training."""

    @property
    def stay(self) -> Tensor:
        """(V,), the probability of staying in each column's states."""
        return self.model.log_stay[list(self.laws), 0].exp()


class PhoneLoop(NamedTuple):
    """An aligner's phones in any order, to decode speech without a transcript."""

    hmm: MixtureGaussianHMM
    names: list[str]
    """The phone of each state."""
    settings: FeatureSettings
    delta_window: int
    """Frames to each side that slopes are taken over; 0 where features have none."""
    mean: Tensor
    """(D,) of features with slopes: what `hmm` takes is less this,"""
    scale: Tensor
    """(D,) and over this; those of all frames of training."""


def make_phone_loop(learnt: Learnt, settings: AlignerSettings) -> PhoneLoop:
    """Every phone after any other, as often as it was heard."""
    inventory, laws, model, visits, average = learnt
    count, states = len(inventory.phones), inventory.states
    size = count * states
    laws, stay = laws[:size], learnt.stay[:size]
    first = torch.arange(count) * states
    # a law that states share was left once in each of them
    heard = torch.stack([visits[laws[i]] / laws.count(laws[i]) for i in first.tolist()])
    share = heard / heard.sum()
    initial = torch.zeros(size, dtype=torch.float64)
    initial[first] = share
    transition = torch.diag(stay)
    for state in range(size):
        if state % states < states - 1:
            transition[state, state + 1] = 1.0 - stay[state]
        else:
            transition[state, first] += (1.0 - stay[state]) * share
    order = sorted(set(laws))
    weights, means, variances = (x[order] for x in model.emission)
    hmm = MixtureGaussianHMM(
        size,
        means.shape[-1],
        means.shape[1],
        weights=weights.exp(),
        means=means,
        covariances=variances,
        initial=initial,
        transition=transition,
        tied_states=[order.index(law) for law in laws],
    )
    names = [phone for phone in inventory.phones for _ in range(states)]
    return PhoneLoop(
        hmm, names, settings.features, settings.delta_window, average.mean.float(), average.deviation.float()
    )


def write_learnt(path: str | os.PathLike[str], learnt: Learnt, settings: AlignerSettings) -> None:
    """Write a file whole or not at all."""
    model, average = learnt.model, learnt.average
    tensors = {**model.emission._asdict(), "log_stay": model.log_stay, "visits": learnt.visits}
    tensors |= average._asdict() | {"laws": torch.tensor(learnt.laws)}
    described = {"settings": asdict(settings), "inventory": learnt.inventory._asdict()}
    header = {"format": FORMAT, "aligner": json.dumps(described)}
    write(path, {name: x.contiguous().clone() for name, x in tensors.items()}, header)


def is_learnt(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of `write_learnt`; OSError where there is none."""
    try:
        return read(path)[1].get("format") == FORMAT
    except ValueError:
        return False


def read_learnt(path: str | os.PathLike[str]) -> tuple[Learnt, AlignerSettings]:
    """What `write_learnt` wrote.

    Raises:
        OSError: there is no such file. ValueError: it is not a whole file of `write_learnt`.
    """
    tensors, header = read(path)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path}: expected an aligner in the format {FORMAT!r}, got {header.get('format')!r}")
    try:
        described = json.loads(header["aligner"])
        phones, classes, class_of, states = (described["inventory"][name] for name in Inventory._fields)
        inventory = Inventory(tuple(phones), tuple(classes), tuple(class_of), int(states))
        laws = tuple(int(law) for law in tensors["laws"])
        if len(laws) != inventory.num_symbols * inventory.states or len(class_of) != len(phones):
            raise ValueError(f"{len(phones)} phones and {len(laws)} laws")
        emission = MixtureParameters(*(tensors[name] for name in MixtureParameters._fields))
        average = Normaliser(*(tensors[name] for name in Normaliser._fields))
        learnt = Learnt(inventory, laws, Acoustics(emission, tensors["log_stay"]), tensors["visits"], average)
        return learnt, AlignerSettings.of(described["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its tensors and its description do not fit each other: {error}") from None
