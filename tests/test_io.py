"""Saved models come back as they were, or are refused."""

from __future__ import annotations

import pytest
import torch

from pytorch_hmm import (
    BaseHMM,
    BernoulliHMM,
    CategoricalHMM,
    GaussianHMM,
    HMMPyTorch,
    MixtureGaussianHMM,
    PoissonHMM,
    StudentTHMM,
    io,
)


def models():
    torch.manual_seed(0)
    return [
        HMMPyTorch(3, topology="left_to_right"),
        GaussianHMM(3, 2, "full", missing="nan").double(),
        MixtureGaussianHMM(2, 3, 4, "tied", learnable=False),
        CategoricalHMM(2, 5, probs=[[0.5, 0.5, 0, 0, 0], [0, 0, 0.2, 0.3, 0.5]]),
        PoissonHMM(2, 3),
        BernoulliHMM(2, 3).double(),
        StudentTHMM(2, 3, "full", degrees_of_freedom=[1.0, 30.0]),
    ]


@pytest.mark.parametrize("model", models(), ids=lambda model: type(model).__name__)
def test_what_is_saved_is_loaded(tmp_path, model):
    path = tmp_path / "model.safetensors"
    model.save(path)
    for cls in (type(model), BaseHMM):
        found = cls.load(path)
        assert type(found) is type(model)
        assert (found.missing, found.learnable) == (model.missing, model.learnable)
        assert repr(found) == repr(model)
        for (name, x), (_, y) in zip(found.state_dict().items(), model.state_dict().items(), strict=True):
            assert x.dtype == y.dtype, name
            assert torch.equal(x, y), name
        assert torch.equal(found.log_transition, model.log_transition)


def test_a_model_is_always_the_same_bytes(tmp_path):
    """safetensors' own are in an order of chance."""
    model = GaussianHMM(3, 2)
    contents = set()
    for n in range(8):
        model.save(tmp_path / str(n))
        contents.add((tmp_path / str(n)).read_bytes())
    assert len(contents) == 1


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    PoissonHMM(2).save(path)
    before = path.read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(io.os, name, stop)
            with pytest.raises(KeyboardInterrupt):
                PoissonHMM(3).save(path)
        assert path.read_bytes() == before
        assert [x.name for x in tmp_path.iterdir()] == [path.name]


def test_files_that_are_no_models_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError):
        GaussianHMM.load(path)
    GaussianHMM(2, 1).save(path)
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="expected PoissonHMM, got GaussianHMM"):
        PoissonHMM.load(path)
    for content in (b"", b"not a model", whole[:100], whole[:-1], whole + b"x"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model.safetensors: expected a file that save wrote"):
            GaussianHMM.load(path)
    path.write_bytes(io.serialized({"x": torch.zeros(2)}, None))
    with pytest.raises(ValueError, match="expected a model in the format"):
        GaussianHMM.load(path)
    path.write_bytes(whole.replace(b'\\"obs_dim\\": 1', b'\\"obs_dim\\": 2'))
    with pytest.raises(ValueError, match="do not fit each other"):
        GaussianHMM.load(path)
    path.write_bytes(whole.replace(b"GaussianHMM", b"os.systemHM"))
    with pytest.raises(ValueError, match=r"got os.systemHM"):
        BaseHMM.load(path)
