"""Laws of durations by scipy's distributions, truncated and normalised, and their maximum likelihood by its optimisers.

Nothing here imports the library.
"""

from __future__ import annotations

import numpy as np
import scipy.optimize
from scipy import stats
from scipy.special import expit, logit, logsumexp


def geometric(n, d, self_loop):
    return stats.geom.logpmf(n + 1, 1.0 - self_loop)


def poisson(n, d, rate):
    return stats.poisson.logpmf(n, rate)


def negative_binomial(n, d, total_count, prob):
    return stats.nbinom.logpmf(n, total_count, 1.0 - prob)


def gamma(n, d, shape, rate):
    return stats.gamma.logpdf(d, shape, scale=1.0 / rate)


def gaussian(n, d, mean, variance):
    return stats.norm.logpdf(d, mean, np.sqrt(variance))


def tilted_gaussian(n, d, slope, sharpness):
    """The Gaussian by what multiplies d and -d^2 / 2 about the middle, since its mean may be far away."""
    gaps = d - 0.5 * (d.min() + d.max())
    return slope * gaps - 0.5 * sharpness * gaps * gaps


LAWS = {
    "geometric": geometric,
    "poisson": poisson,
    "negative_binomial": negative_binomial,
    "gamma": gamma,
    "gaussian": gaussian,
    "tilted_gaussian": tilted_gaussian,
}


def log_law(name, parameters, least, most, longest=None):
    """(D_max,): log p(duration = d + 1) of one state, -inf outside least..most."""
    found = np.full(most if longest is None else longest, -np.inf)
    d = np.arange(least, most + 1)
    with np.errstate(divide="ignore"):
        weights = LAWS[name](d - least, d, *parameters) if name != "uniform" else np.zeros(len(d))
    found[d - 1] = weights - logsumexp(weights)
    return found


# of each parameter: how an optimiser sees it, back from that, and its bounds there
LOG, LOGIT, PLAIN = (np.log, np.exp), (logit, expit), (float, float)
PROBABILITY = (*LOGIT, logit(1e-12), logit(1 - 1e-12))


def parameters_of(name, longest):
    """What the optimiser moves."""
    widest = (10.0 * longest) ** 2
    return {
        "geometric": [PROBABILITY],
        "poisson": [(*LOG, np.log(1e-12), np.log(1e13))],
        "negative_binomial": [(*LOG, np.log(1e-2), np.log(1e6)), PROBABILITY],
        "gamma": [(*LOG, np.log(1e-6), np.log(1e9)), (*LOG, np.log(1e-9), np.log(1e9))],
        "tilted_gaussian": [(*PLAIN, -1e3 * widest, 1e3 * widest), (*LOG, -np.log(widest), np.log(1e2))],
        "gaussian": [(*PLAIN, -1e9, 1e9), (*LOG, np.log(1e-2), np.log(widest))],
    }[name]


def mean_log_law(counts, log_probs):
    """Mean of log p under counts (D_max,)."""
    return float((counts * np.where(counts > 0, log_probs, 0.0)).sum() / counts.sum())


def best_mean(name, counts, least, starts, held=None):
    """The highest mean of log p under counts (D_max,), from several starts, each a tuple of parameters.

    Args:
        held: by the index of a parameter the value it stays at.
    """
    most, held = len(counts), {} if held is None else held
    moves = parameters_of(name, most)
    free = [i for i in range(len(moves)) if i not in held]

    def cost(x):
        values = dict(held) | {i: moves[i][1](x[j]) for j, i in enumerate(free)}
        found = mean_log_law(counts, log_law(name, [values[i] for i in range(len(moves))], least, most))
        return -found if np.isfinite(found) else 1e300

    bounds = [moves[i][2:] for i in free]
    best = -np.inf
    for start in starts:
        x = [np.clip(moves[i][0](start[i]), *moves[i][2:]) for i in free]
        for method, options in (("L-BFGS-B", {}), ("Nelder-Mead", {"xatol": 1e-6, "fatol": 1e-10, "maxiter": 600})):
            with np.errstate(all="ignore"):
                found = scipy.optimize.minimize(cost, x, method=method, bounds=bounds, options=options)
            best = max(best, -found.fun)
    return best
