"""hmmlearn's classes, arguments and attributes over this library's models: a change of import is enough.

    from pytorch_hmm.sklearn import GaussianHMM    # instead of hmmlearn.hmm

They are scikit-learn estimators: `clone`, `Pipeline` and `GridSearchCV` take them. What they fit is `model_`, a module.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils import check_array, check_random_state

import hmm_functional as hf
import pytorch_hmm
from hmm_functional.emissions import GaussianPrior
from hmm_functional.learning import Priors

from .data import padded
from .report import FitReport, NotConverged
from .trainable import EmissionHMM


class Monitor(NamedTuple):
    """What hmmlearn's `monitor_` tells of the last fit."""

    history: list[float]
    iter: int
    converged: bool


class _BaseHMM(BaseEstimator):  # type: ignore[misc]
    """Arguments and methods that all models share; the classes below add those of their emissions.

    `fit`, `score`, `decode`, `predict`, `predict_proba`, `score_samples`, `sample`, `aic`, `bic` and
    `get_stationary_distribution` are hmmlearn's: X holds sequences one after the other, `lengths` their lengths.
    """

    def _keep_arguments(self, given: dict[str, Any]) -> None:
        """The constructor's arguments, as attributes of their names: what scikit-learn's `clone` needs."""
        self.__dict__.update({name: value for name, value in given.items() if name != "self"})

    def fit(self, X: Any, y: Any = None, lengths: Any = None) -> Self:
        """Learn from X (n_samples, n_features) by EM, starting from what `init_params` does not ask to be set.

        `lengths` may be the second argument, as in hmmlearn, or be named; y, of scikit-learn, is otherwise ignored.
        """
        lengths = y if lengths is None else lengths
        X, sequences = self._sequences(X, lengths)
        generator = self._generator()
        model: Any = self._new_model(X)
        model.initialize_from_data(*padded(sequences), generator=generator)
        uniform = torch.full((self.n_components, self.n_components), 1.0 / self.n_components).log()
        model.log_initial, model.log_transition = uniform[0], uniform
        for letter, name in self._attributes().items():
            if hasattr(self, name) and letter not in self.init_params:
                self._take(model, letter)
        if "c" in self.init_params and hasattr(model, "covariances"):  # as hmmlearn starts
            is_matrix = self.covariance_type in ("full", "tied")
            unit = torch.eye(X.shape[1], dtype=torch.float64) if is_matrix else 1.0
            model.covariances = model.covariances.detach() + self.min_covar * unit
        frozen = [self._place(letter) for letter in self._attributes() if letter not in self.params]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConverged)
            report = model.fit(
                sequences,
                init="keep",
                num_iterations=self.n_iter,
                tolerance=max(self.tol, 0.0),
                priors=self._priors(),
                frozen=frozen,
                progress=self.verbose,
            )
        self._keep(model, report)
        if not report.converged and self.tol > 0:
            warnings.warn(f"not converged after {self.n_iter} iterations", ConvergenceWarning, stacklevel=2)
        return self

    def score(self, X: Any, y: Any = None, lengths: Any = None) -> float:
        """log p(X), summed over the sequences."""
        _, sequences = self._sequences(X, y if lengths is None else lengths)
        with torch.no_grad():
            return float(self._model()(*padded(sequences)).sum())

    def decode(self, X: Any, lengths: Any = None, algorithm: str | None = None) -> tuple[float, Any]:
        """The most probable states, and their log p(X, states); with "map" state by state, and expected hits."""
        _, sequences = self._sequences(X, lengths)
        algorithm = self.algorithm if algorithm is None else algorithm
        if algorithm not in ("viterbi", "map"):
            raise ValueError(f"algorithm: expected 'viterbi' or 'map', got {algorithm!r}")
        x, ends = padded(sequences)
        with torch.no_grad():
            if algorithm == "viterbi":
                states, scores = self._model().viterbi_decode(x, ends)
            else:
                scores, states = self._model().forward_backward(x, ends)[0].max(-1)
        return float(scores.sum()), _joined(states, ends)

    def predict(self, X: Any, lengths: Any = None) -> Any:
        """The states of `decode`, (n_samples,)."""
        return self.decode(X, lengths)[1]

    def score_samples(self, X: Any, lengths: Any = None) -> tuple[float, Any]:
        """log p(X) and posterior probabilities (n_samples, n_components)."""
        _, sequences = self._sequences(X, lengths)
        x, ends = padded(sequences)
        with torch.no_grad():
            posteriors, likelihood = self._model().forward_backward(x, ends)
        return float(likelihood.sum()), _joined(posteriors, ends)

    def predict_proba(self, X: Any, lengths: Any = None) -> Any:
        """Posterior probabilities (n_samples, n_components)."""
        return self.score_samples(X, lengths)[1]

    def sample(self, n_samples: int = 1, random_state: Any = None) -> tuple[Any, Any]:
        """Observations (n_samples, n_features) and states (n_samples,)."""
        states, x = self._model().sample(n_samples, generator=self._generator(random_state))
        return x.reshape(n_samples, -1).numpy(), states.numpy()

    def aic(self, X: Any, lengths: Any = None) -> float:
        """Akaike's information criterion; lower is better."""
        return float(self._model().aic(*padded(self._sequences(X, lengths)[1])))

    def bic(self, X: Any, lengths: Any = None) -> float:
        """Schwarz's information criterion; lower is better."""
        return float(self._model().bic(*padded(self._sequences(X, lengths)[1])))

    def get_stationary_distribution(self) -> Any:
        """The distribution that the transitions leave as it is, (n_components,)."""
        return hf.stationary(self._model().log_transition.detach()).exp().numpy()

    # what the emissions say

    @abstractmethod
    def _new_model(self, X: Any) -> EmissionHMM:
        """A module for observations like X."""
        raise NotImplementedError

    def _attributes(self) -> dict[str, str]:
        """The attributes that hold the parameters, by their letter."""
        return {"s": "startprob_", "t": "transmat_", **self._own_attributes}

    _own_attributes: dict[str, str]

    def _read(self, model: Any, letter: str) -> Any:
        """Parameters of the model as NumPy arrays, probabilities not logs."""
        name = self._place(letter)
        value = getattr(model, name).detach()
        return (value.exp() if name.startswith("log_") else value).numpy().copy()

    def _write(self, model: Any, letter: str, value: Any) -> None:
        name = self._place(letter)
        with np.errstate(divide="ignore"):
            setattr(model, name, np.log(value) if name.startswith("log_") else np.asarray(value))

    _places: dict[str, str] = {}  # noqa: RUF012

    def _place(self, letter: str) -> str:
        """The module's property of a letter."""
        names = {"s": "log_initial", "t": "log_transition", "m": "means", "c": "covariances", "w": "log_weights"}
        return {**names, **self._places}[letter]

    def _take(self, model: Any, letter: str) -> None:
        name = self._attributes()[letter]
        self._write(model, letter, getattr(self, f"_{name}" if letter == "c" else name))

    def _priors(self) -> Priors:
        return Priors(_tensor(self.startprob_prior), _tensor(self.transmat_prior), self._emission_prior())

    def _emission_prior(self) -> Any:
        return None

    # what hmmlearn keeps

    def _keep(self, model: EmissionHMM, report: FitReport) -> None:
        self.model_, self.report_ = model, report
        for letter, name in self._attributes().items():
            setattr(self, name, self._read(model, letter))
        self.monitor_ = Monitor(report.history[:-1], len(report.history) - 1, report.converged)

    def _model(self) -> Any:
        """The module, with what was assigned to the attributes since."""
        names = self._attributes()
        missing = [name for name in names.values() if not hasattr(self, name)]
        if missing:
            raise NotFittedError(f"{type(self).__name__}: fit it first, or assign {', '.join(missing)}")
        model = self._new_model(None)
        for letter in names:
            self._take(model, letter)
        return model

    def _generator(self, random_state: Any = None) -> torch.Generator:
        state = check_random_state(self.random_state if random_state is None else random_state)
        return torch.Generator().manual_seed(int(state.randint(2**31 - 1)))

    def _checked(self, X: Any) -> Any:
        return torch.from_numpy(np.ascontiguousarray(check_array(X, dtype=np.float64)))

    def _sequences(self, X: Any, lengths: Any) -> tuple[Any, list[Any]]:
        X = self._checked(X)
        if lengths is None:
            return X, [X]
        lengths = np.asarray(lengths)
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or lengths.sum() != len(X):
            raise ValueError(f"lengths: expected integers that sum to the {len(X)} rows of X, got {lengths}")
        return X, list(torch.split(X, lengths.tolist()))


class GaussianHMM(_BaseHMM):
    """hmmlearn's `GaussianHMM`: one Gaussian a state; "tied_diag" covariances besides hmmlearn's four.

    `covars_` is read as hmmlearn's, matrices for "diag" and "tied" too, and assigned in the shape of its type.
    `covars_prior` and `covars_weight` mean for all types what hmmlearn's mean for "diag"; `means_weight` counts once
    more.
    """

    _own_attributes = {"m": "means_", "c": "covars_"}  # noqa: RUF012

    def __init__(
        self,
        n_components: int = 1,
        covariance_type: str = "diag",
        min_covar: float = 1e-3,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        means_prior: Any = 0,
        means_weight: Any = 0,
        covars_prior: Any = 1e-2,
        covars_weight: Any = 1,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stmc",
        init_params: str = "stmc",
        implementation: str = "log",
    ) -> None:
        self._keep_arguments(locals())

    @property
    def covars_(self) -> Any:
        """Covariances, (n_components, n_features, n_features) but for "spherical" and "tied_diag"."""
        found = self._covars_
        if self.covariance_type == "diag" and found.ndim == 2:
            return np.stack([np.diag(row) for row in found])
        if self.covariance_type == "tied" and found.ndim == 2:
            return np.stack([found] * self.n_components)
        return found

    @covars_.setter
    def covars_(self, value: Any) -> None:
        self._covars_ = np.array(value, dtype=np.float64)

    def _new_model(self, X: Any) -> EmissionHMM:
        dim = X.shape[1] if X is not None else np.asarray(self.means_).shape[1]
        return pytorch_hmm.GaussianHMM(self.n_components, dim, self.covariance_type).double()

    def _emission_prior(self) -> GaussianPrior:
        scale = _tensor(self.covars_prior)
        if self.covariance_type in ("full", "tied") and not isinstance(scale, torch.Tensor):
            # a number is a multiple of the identity
            dim = self.model_dim_
            scale = scale * torch.eye(dim, dtype=torch.float64)
        extra = max(float(self.covars_weight) - 1.0, 0.0)
        own = 2.0 if self.covariance_type not in ("full", "tied") else self.model_dim_ + 1.0
        return GaussianPrior(_tensor(self.means_prior), float(self.means_weight), scale, extra - own if extra else 0.0)

    def _checked(self, X: Any) -> Any:
        found = super()._checked(X)
        self.model_dim_ = self.n_features = found.shape[1]
        return found


class GMMHMM(GaussianHMM):
    """hmmlearn's `GMMHMM`: a mixture of `n_mix` Gaussians a state, by exact EM (hmmlearn's is not exact)."""

    _own_attributes = {"m": "means_", "c": "covars_", "w": "weights_"}  # noqa: RUF012

    def __init__(
        self,
        n_components: int = 1,
        n_mix: int = 1,
        min_covar: float = 1e-3,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        weights_prior: Any = 1.0,
        means_prior: Any = 0.0,
        means_weight: Any = 0.0,
        covars_prior: Any = 0.0,
        covars_weight: Any = 1,
        algorithm: str = "viterbi",
        covariance_type: str = "diag",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stmcw",
        init_params: str = "stmcw",
        implementation: str = "log",
    ) -> None:
        self._keep_arguments(locals())

    def _new_model(self, X: Any) -> EmissionHMM:
        dim = X.shape[1] if X is not None else np.asarray(self.means_).shape[-1]
        form: Any = self.covariance_type
        return pytorch_hmm.MixtureGaussianHMM(self.n_components, dim, self.n_mix, form).double()

    def _emission_prior(self) -> Any:
        return super()._emission_prior(), _tensor(self.weights_prior)


class CategoricalHMM(_BaseHMM):
    """hmmlearn's `CategoricalHMM`: symbols 0..n_features-1 in X (n_samples, 1)."""

    _own_attributes = {"e": "emissionprob_"}  # noqa: RUF012
    _places = {"e": "log_probs"}  # noqa: RUF012

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        *,
        emissionprob_prior: Any = 1.0,
        n_features: int | None = None,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "ste",
        init_params: str = "ste",
        implementation: str = "log",
    ) -> None:
        self._keep_arguments(locals())

    def _new_model(self, X: Any) -> EmissionHMM:
        given = np.asarray(self.emissionprob_).shape[1] if X is None else self.n_features
        num_symbols = int(X.max()) + 1 if given is None else given
        return pytorch_hmm.CategoricalHMM(self.n_components, num_symbols).double()

    def _emission_prior(self) -> Any:
        return _tensor(self.emissionprob_prior)

    def _checked(self, X: Any) -> Any:
        X = check_array(X, dtype=None)
        if X.shape[1] != 1 or X.dtype.kind not in "iu":
            raise ValueError(f"X: expected integers of shape (n_samples, 1), got {X.dtype} of shape {X.shape}")
        return torch.from_numpy(np.ascontiguousarray(X[:, 0], np.int64))


class PoissonHMM(_BaseHMM):
    """hmmlearn's `PoissonHMM`: counts in X (n_samples, n_features)."""

    _own_attributes = {"l": "lambdas_"}  # noqa: RUF012
    _places = {"l": "rates"}  # noqa: RUF012

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        lambdas_prior: Any = 0.0,
        lambdas_weight: Any = 0.0,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stl",
        init_params: str = "stl",
        implementation: str = "log",
    ) -> None:
        self._keep_arguments(locals())

    def _new_model(self, X: Any) -> EmissionHMM:
        dim = X.shape[1] if X is not None else np.asarray(self.lambdas_).shape[1]
        return pytorch_hmm.PoissonHMM(self.n_components, dim).double()

    def _emission_prior(self) -> Any:
        return _tensor(self.lambdas_prior) + 1.0, _tensor(self.lambdas_weight)  # hmmlearn adds alpha to the counts


def _tensor(value: Any) -> Any:
    """A number, or a float64 tensor."""
    array = np.asarray(value, dtype=np.float64)
    return float(array) if array.ndim == 0 else torch.from_numpy(array)


def _joined(x: Any, ends: Any) -> Any:
    """Rows of all sequences, one after the other."""
    return torch.cat([row[:end] for row, end in zip(x, ends.tolist(), strict=True)]).numpy()
