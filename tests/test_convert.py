"""Models of hmmlearn and ours score the same after conversion, both ways."""

from __future__ import annotations

import hmmlearn.hmm
import numpy as np
import pytest
import torch

from pytorch_hmm import (
    BernoulliHMM,
    CategoricalHMM,
    GaussianHMM,
    MixtureGaussianHMM,
    PoissonHMM,
    from_hmmlearn,
    to_hmmlearn,
)


def cases():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)) * 2
    for form in ("diag", "full", "spherical", "tied"):
        yield f"gaussian {form}", hmmlearn.hmm.GaussianHMM(2, form, n_iter=3, random_state=0).fit(x), x
    for form in ("diag", "full", "spherical"):
        model = hmmlearn.hmm.GMMHMM(2, 2, covariance_type=form, n_iter=2, random_state=0).fit(x)
        yield f"mixture {form}", model, x
    symbols = rng.integers(4, size=(60, 1))
    yield "categorical", hmmlearn.hmm.CategoricalHMM(2, n_iter=3, random_state=0).fit(symbols), symbols
    counts = rng.poisson(3.0, size=(60, 2))
    yield "poisson", hmmlearn.hmm.PoissonHMM(2, n_iter=3, random_state=0).fit(counts), counts


CASES = list(cases())


@pytest.mark.parametrize(("model", "x"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_scores_survive_both_ways(model, x):
    found = from_hmmlearn(model)
    data = torch.from_numpy(x[:, 0] if isinstance(found, CategoricalHMM) else x)
    assert found(data).item() == pytest.approx(model.score(x), abs=1e-8)
    again = to_hmmlearn(found)
    assert type(again) is type(model)
    assert again.score(x) == pytest.approx(model.score(x), abs=1e-8)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


def test_what_has_no_other_form_is_said():
    with pytest.raises(TypeError, match="got BernoulliHMM"):
        to_hmmlearn(BernoulliHMM(2))
    with pytest.raises(ValueError, match="got 'tied_diag'"):
        to_hmmlearn(GaussianHMM(2, 1, "tied_diag"))
    with pytest.raises(ValueError, match="got 'tied'"):
        to_hmmlearn(MixtureGaussianHMM(2, 1, 2, "tied"))
    with pytest.raises(TypeError, match="expected hmmlearn's GaussianHMM"):
        from_hmmlearn(PoissonHMM(2))
    with pytest.raises(ValueError, match="ties in each state"):
        from_hmmlearn(hmmlearn.hmm.GMMHMM(2, 2, covariance_type="tied"))
