"""Time warping: equal to all paths counted out, on every library and kernel, and to dtw-python; soft, too."""

from __future__ import annotations

import dtw as peer
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hmm_functional as hf
from property_tests.strategies import seeds
from tests.helpers.backends import LIBRARIES
from tests.helpers.warpings import STEPS, cost, soft, warping_paths, window_of

ROWS, COLUMNS = 4, 5
PATTERNS = st.sampled_from(sorted(STEPS))
KERNELS = st.sampled_from(["reference", "numba"])
WINDOWS = st.one_of(
    st.none(),
    st.just("itakura"),
    st.tuples(st.sampled_from(["sakoe_chiba", "slanted_band"]), st.integers(0, 4)),
)


@st.composite
def grids(draw, most=5):
    """Costs, at times with ties and with cells that are forbidden."""
    rows, columns = draw(st.integers(1, most)), draw(st.integers(1, most))
    rng = np.random.default_rng(draw(seeds))
    costs = rng.normal(size=(rows, columns)) * draw(st.sampled_from([1.0, 30.0]))
    if draw(st.booleans()):
        costs = rng.integers(0, 3, size=costs.shape).astype(float)
    costs[rng.random(costs.shape) < draw(st.sampled_from([0.0, 0.2]))] = np.inf
    return costs


def cells(path):
    return path[path[..., 0] >= 0]


@given(grids(), PATTERNS, WINDOWS, st.booleans(), st.booleans(), st.sampled_from(["numpy", "torch", "strict"]), KERNELS)
def test_the_best_of_all_paths(costs, pattern, window, opens, ends_open, name, kernel):
    opens, ends_open = opens and pattern == "asymmetric", ends_open and pattern != "symmetric1"
    kernel = "reference" if name == "strict" else kernel
    allowed = window_of(*costs.shape, window) & np.isfinite(costs)
    paths = list(warping_paths(*costs.shape, pattern, open_begin=opens, open_end=ends_open, allowed=allowed))
    library = LIBRARIES[name]
    found = hf.dtw_from_costs(
        library.array(costs), step_pattern=pattern, window=window, open_begin=opens, open_end=ends_open, kernel=kernel
    )
    distance, path = float(found.distance), cells(library.numpy(found.path))
    if not paths:
        assert distance == np.inf
        assert not len(path)
        return
    chosen = next(p for p in paths if [list(c[:2]) for c in p] == path.tolist())

    def value(p):
        return cost(p, costs) / (sum(c[2] for c in p) + (pattern == "symmetric2") if ends_open else 1)

    assert value(chosen) <= min(map(value, paths)) + 1e-12 * max(1, abs(costs[np.isfinite(costs)]).max())
    np.testing.assert_allclose(distance, cost(chosen, costs), rtol=1e-13, atol=1e-12)


@given(st.data())
@settings(max_examples=30)
def test_jax_finds_the_same(data):
    rng = np.random.default_rng(data.draw(seeds))
    x, y = rng.normal(size=(3, ROWS, 2)), rng.normal(size=(3, COLUMNS, 2))
    lengths, targets = (rng.integers(1, n + 1, size=3) for n in (ROWS, COLUMNS))
    options = {"lengths": lengths, "target_lengths": targets}
    jax = LIBRARIES["jax"]
    arrays, ends = (jax.array(x), jax.array(y)), {name: jax.array(n) for name, n in options.items()}
    found = jax.call("dtw", *arrays, **ends)
    expected = hf.dtw(x, y, **options)
    np.testing.assert_array_equal(jax.numpy(found.path), expected.path)
    np.testing.assert_allclose(jax.numpy(found.distance), expected.distance, rtol=1e-13)
    softly = jax.call("soft_dtw", *arrays, **ends)
    np.testing.assert_allclose(jax.numpy(softly), hf.soft_dtw(x, y, **options), rtol=1e-12, atol=1e-12)


@given(st.integers(1, 80), st.integers(1, 80), PATTERNS, WINDOWS, st.booleans(), st.booleans(), seeds, KERNELS)
def test_dtw_python_says_the_same(rows, columns, pattern, window, has_ties, ends_open, seed, kernel):
    """Path for path: ties, too, are broken alike."""
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 4, size=(rows, columns)).astype(float) if has_ties else rng.random((rows, columns))
    ends_open = ends_open and pattern != "symmetric1"
    opens = pattern == "asymmetric" and window is None and bool(rng.random() < 0.5)
    if not window_of(rows, columns, window)[0, 0]:
        return  # there the peer begins in spite of the window
    name, radius = (window, 0) if isinstance(window, str) else window or ("none", 0)
    options = {} if name in ("none", "itakura") else {"window_args": {"window_size": radius}}
    try:
        theirs = peer.dtw(
            costs,
            step_pattern=pattern,
            window_type=name.replace("_", ""),
            open_begin=opens,
            open_end=ends_open,
            **options,
        )
    except ValueError:  # no path, or none of open ends
        theirs = None
    options = {"step_pattern": pattern, "window": window, "open_begin": opens, "open_end": ends_open, "kernel": kernel}
    found = hf.dtw_from_costs(costs, **options)
    if theirs is None:
        assert found.distance == np.inf
        assert found.path.max() == -1
        return
    np.testing.assert_allclose(found.distance, theirs.distance, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(cells(found.path), np.stack([theirs.index1, theirs.index2], -1))
    if pattern != "symmetric1":
        per_unit = hf.dtw_from_costs(costs, normalize=True, **options).distance
        np.testing.assert_allclose(per_unit, theirs.normalizedDistance, rtol=1e-13, atol=1e-13)


@given(grids(), PATTERNS, WINDOWS, st.sampled_from([0.01, 0.5, 20.0]), KERNELS)
@settings(max_examples=40)
def test_soft_warping_is_the_sum_over_all_paths(costs, pattern, window, gamma, kernel):
    allowed = window_of(*costs.shape, window) & np.isfinite(costs)
    value, visits = soft(np.where(allowed, costs, 0.0), gamma, pattern, allowed)
    given_ = torch.tensor(costs, requires_grad=True)
    found = hf.soft_dtw_from_costs(given_, gamma=gamma, step_pattern=pattern, window=window, kernel=kernel)
    found.backward()
    scale = max(1.0, np.abs(costs[np.isfinite(costs)]).max(initial=0.0))
    np.testing.assert_allclose(found.item(), value, rtol=1e-12, atol=1e-12 * scale)
    np.testing.assert_allclose(given_.grad.numpy(), visits, atol=1e-11 * scale / gamma)


@given(st.integers(1, 45), st.integers(1, 45), st.integers(1, 3), PATTERNS, WINDOWS, seeds)
@settings(max_examples=15)
def test_kernels_agree_and_lengths_are_truncation(rows, columns, dim, pattern, window, seed):
    rng = np.random.default_rng(seed)
    x, y = torch.from_numpy(rng.normal(size=(2, rows, dim))), torch.from_numpy(rng.normal(size=(2, columns, dim)))
    n, m = int(rng.integers(1, rows + 1)), int(rng.integers(1, columns + 1))
    for one, end in ((x, n), (y, m)):
        one[1, end:] = torch.nan
    options = {"step_pattern": pattern, "window": window}
    ragged = {"lengths": [rows, n], "target_lengths": [columns, m], **options}
    for kernel in ("reference", "numba"):
        found = hf.dtw(x, y, **ragged, kernel=kernel)
        softly = hf.soft_dtw(x, y, **ragged, kernel=kernel)
        visits = hf.soft_dtw_alignment(x, y, **ragged, kernel=kernel)
        for b, (end, other) in enumerate(((rows, columns), (n, m))):
            alone = hf.dtw(x[b, :end], y[b, :other], **options, kernel="reference")
            path = cells(alone.path)
            torch.testing.assert_close(found.distance[b], alone.distance, rtol=1e-12, atol=1e-12)
            assert torch.equal(cells(found.path[b]), path)
            single = hf.soft_dtw(x[b, :end], y[b, :other], **options, kernel="reference")
            torch.testing.assert_close(softly[b], single, rtol=1e-11, atol=1e-11)
            expected = hf.soft_dtw_alignment(x[b, :end], y[b, :other], **options, kernel="reference")
            torch.testing.assert_close(visits[b, :end, :other], expected, rtol=1e-9, atol=1e-10)
            assert visits[b, end:].eq(0).all()
            assert visits[b, :, other:].eq(0).all()


@pytest.mark.parametrize("kernel", ["reference", "numba"])
@given(seeds, PATTERNS)
@settings(max_examples=3)
def test_derivatives(kernel, seed, pattern):
    rng = np.random.default_rng(seed)
    x, y = (torch.from_numpy(rng.normal(size=(n, 1))).requires_grad_() for n in (3, 4))
    options = {"step_pattern": pattern, "kernel": kernel}
    checks = {
        "value": lambda x, y: hf.soft_dtw(x, y, gamma=0.7, **options),
        "alignment": lambda x, y: hf.soft_dtw_alignment(x, y, gamma=0.7, **options),
        "distance": lambda x, y: hf.dtw(x, y, **options).distance,
    }
    for name, function in checks.items():
        assert torch.autograd.gradcheck(
            function, (x, y), check_forward_ad=name == "alignment", fast_mode=name != "alignment"
        )
        if name != "alignment":
            assert torch.autograd.gradgradcheck(function, (x, y), fast_mode=True)
