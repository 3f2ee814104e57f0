"""Trajectories, windows and durations: known answers, dtypes, transforms, errors; the example on the shipped speech."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import torch

import hmm_functional as hf
from examples import synthesis as example
from hmm_functional import banded
from hmm_functional.backend import backend_named
from pytorch_hmm.speech.features import log_mel
from tests.helpers.backends import LIBRARIES
from tests.helpers.trajectories import Trajectory, solutions

ROOT = Path(__file__).parents[1]
COMMON = ((1.0,), (-0.5, 0.0, 0.5), (1.0, -2.0, 1.0))
STEP = ((1.0,), (-1.0, 1.0, 0.0))
EDGES = ("truncate", "hts")
every_library = pytest.mark.parametrize("name", ["numpy", "torch", "jax"])


def problem(size=2, num_steps=9, dim=2, windows=3, seed=0):
    rng = np.random.default_rng(seed)
    shape = (size, num_steps, windows * dim)
    return rng.normal(size=shape), rng.uniform(0.3, 3.0, size=shape)


def run(name, means, variances, windows, **options):
    """mlpg of NumPy arrays in a library, to NumPy; compiled in JAX, where calls one by one take seconds."""

    def value(means, variances):
        return hf.mlpg(means, variances, windows, **options)

    library = LIBRARIES[name]
    dtype = options.pop("dtype", None)
    given = (library.array(x, dtype) for x in (means, variances))
    return library.numpy((jax.jit(value) if name == "jax" else value)(*given))


def in_torch(size=2, num_steps=9, dim=2):
    return [torch.from_numpy(x) for x in problem(size, num_steps, dim)]


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_sixty_digits(edges, spread):
    """Static variances 10^6 times the dynamic ones, and the other way round."""
    rng = np.random.default_rng(1)
    means, variances = rng.normal(size=(14, 3)), 10 ** rng.uniform(-spread / 2, spread / 2, size=(14, 3))
    wanted = Trajectory(means, variances, COMMON, edges).exact_solution()
    found = hf.mlpg(means, variances, COMMON, edges=edges)
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("edges", EDGES)
def test_the_first_window_counts_across_the_ends_whatever_its_length(edges):
    means, variances = problem(windows=2)
    windows = ((0.3, 1.0, 0.2), (-0.5, 0.0, 0.5))
    found = hf.mlpg(means, variances, windows, edges=edges)
    np.testing.assert_allclose(found, solutions(means, variances, windows, edges), rtol=1e-10, atol=1e-12)
    back = hf.mlpg(hf.apply_windows(found, windows, edges=edges), variances, windows, edges=edges)
    np.testing.assert_allclose(back, found, rtol=1e-10, atol=1e-12)


@every_library
def test_static_means_alone_are_given_back_to_the_bit(name):
    means, variances = problem(windows=1)
    for dtype in (np.float32, np.float64):
        found = run(name, means, variances, ((1,),), dtype=dtype)
        assert found.dtype == dtype
        assert (found == means.astype(dtype)).all()


@every_library
def test_a_boundary_without_weight_parts_a_sequence(name):
    """With steps from the frame before, a step of infinite variance leaves two sequences; its mean is not read."""
    means, variances = problem(windows=2)
    means[:, 4, 2:], variances[:, 4, 2:] = np.nan, np.inf
    found = run(name, means, variances, STEP)
    for part in (slice(0, 4), slice(4, 9)):
        apart = solutions(np.nan_to_num(means[:, part]), variances[:, part], STEP)
        np.testing.assert_allclose(found[:, part], apart, rtol=1e-10, atol=1e-12)


@every_library
def test_precision(name):
    """float32 means with a large offset lose nothing to the solution; half precision gives float32."""
    library = LIBRARIES[name]
    means, variances = problem(num_steps=100)
    means[..., :2] += 1000.0
    rounded = means.astype(np.float32).astype(np.float64)
    wanted = solutions(rounded, variances.astype(np.float32).astype(np.float64), COMMON)
    found = run(name, means, variances, COMMON, dtype=np.float32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert run(name, means, variances, COMMON, dtype=np.float16).dtype == np.float32
    assert library.numpy(hf.apply_windows(library.array(means, np.float16), COMMON)).dtype == np.float32


def test_windows_may_be_arrays():
    means, variances = in_torch()
    wanted = hf.mlpg(means, variances, COMMON)
    for make in (np.array, torch.tensor, jnp.asarray, lambda w: [np.float64(v) for v in w]):
        assert torch.equal(hf.mlpg(means, variances, [make(w) for w in COMMON]), wanted)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("width", [2, 3, 4, 7])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 21])
def test_both_ways_of_solving_give_what_dense_elimination_gives(library, width, num_steps):
    rng = np.random.default_rng(width * num_steps)
    dense = np.zeros((2, 3, num_steps, num_steps))
    bands = np.zeros((2, 3, num_steps, width))
    for j in range(min(width, num_steps)):
        values = rng.uniform(-1, 1, size=(2, 3, num_steps - j)) + 2 * width * (j == 0)
        bands[:, :, : num_steps - j, j] = values
        places = np.arange(num_steps - j)
        dense[:, :, places, places + j] = dense[:, :, places + j, places] = values
    right = rng.normal(size=(2, 3, num_steps))
    wanted = np.linalg.solve(dense, right[..., None])[..., 0]
    backend = backend_named(library)
    arrays = [LIBRARIES[library].array(x) for x in (bands, right)]
    for method in ("cyclic", "lapack"):
        (factor,) = backend.call(banded.FACTOR, method, arrays[:1])
        assert factor.shape == banded.FACTOR.output_shapes(method, [bands.shape])[0]
        found = LIBRARIES[library].numpy(banded.solve_again(backend, *arrays, factor))
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)
        (shared,) = backend.call(banded.FACTOR, method, [arrays[0][:1]])
        found = LIBRARIES[library].numpy(banded.solve_again(backend, arrays[0][:1], arrays[1], shared))
        other = np.linalg.solve(dense[:1], right[..., None])[..., 0]
        np.testing.assert_allclose(found, other, rtol=1e-12, atol=1e-13)
        product = LIBRARIES[library].numpy(banded.apply(backend, arrays[0], LIBRARIES[library].array(wanted)))
        np.testing.assert_allclose(product, right, rtol=1e-11, atol=1e-12)


def test_derivatives_of_the_other_way_of_solving():
    backend = backend_named("torch")
    rng = np.random.default_rng(0)
    bands = torch.from_numpy(rng.uniform(-1, 1, size=(1, 2, 5, 3)) + np.array([6.0, 0.0, 0.0]))
    inside = torch.arange(5)[:, None] + torch.arange(3) < 5
    right = torch.from_numpy(rng.normal(size=(2, 2, 5))).requires_grad_()

    def found(bands, right):
        bands = bands.where(inside, 0.0)
        (factor,) = backend.call(banded.FACTOR, "cyclic", [bands.detach()])
        return banded.solve_again(backend, bands, right, factor)

    assert torch.autograd.gradcheck(found, (bands.requires_grad_(), right), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(found, (bands, right))


def test_transforms_of_torch():
    means, variances = in_torch(3)
    whole = hf.mlpg(means, variances, COMMON)

    def value(means, variances):
        return hf.mlpg(means, variances, COMMON, edges="truncate")

    def loss(means, variances):
        return (value(means, variances) ** 3).sum()

    torch.testing.assert_close(torch.vmap(value)(means, variances), whole)
    torch.testing.assert_close(torch.vmap(value, (0, None))(means, variances[0]), value(means, variances[0]))
    torch.testing.assert_close(torch.vmap(value, (None, 0))(means[0], variances), value(means[:1], variances))
    torch.testing.assert_close(torch.compile(value, fullgraph=True, backend="eager")(means, variances), whole)
    leaves = [x.clone().requires_grad_() for x in (means, variances)]
    slopes = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for found in (
        torch.func.grad(loss, (0, 1))(means, variances),
        torch.vmap(torch.func.grad(loss, (0, 1)))(means, variances),
        torch.autograd.grad(compiled(*leaves), leaves),
    ):
        torch.testing.assert_close(found, slopes)
    forward, reverse = (f(lambda v: value(means[0], v))(variances[0]) for f in (torch.func.jacfwd, torch.func.jacrev))
    torch.testing.assert_close(forward, reverse)


def test_transforms_of_jax():
    means, variances = (jnp.asarray(x) for x in problem(3))

    def value(means, variances):
        return hf.mlpg(means, variances, COMMON)

    whole = solutions(*problem(3), COMMON)
    np.testing.assert_allclose(value(means, variances), whole, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.vmap(value))(means, variances), whole, rtol=1e-10, atol=1e-12)
    mapped = jax.jit(jax.vmap(value, (0, None)))(means, variances[0])
    np.testing.assert_allclose(mapped, jax.jit(value)(means, variances[0]), rtol=1e-12)
    forward, reverse = (jax.jit(f(lambda v: value(means[0], v)))(variances[0]) for f in (jax.jacfwd, jax.jacrev))
    np.testing.assert_allclose(forward, reverse, rtol=1e-10, atol=1e-13)


def test_jax_without_x64():
    code = """
import jax, numpy as np, hmm_functional as hf
rng = np.random.default_rng(0)
means, variances = rng.normal(size=(2, 50, 6)).astype("f"), rng.uniform(0.01, 1, size=(2, 50, 6)).astype("f")
windows = ((1,), (-0.5, 0, 0.5), (1, -2, 1))
wanted = hf.mlpg(means.astype("d"), variances.astype("d"), windows, lengths=[50, 20])
found = jax.jit(lambda m, v: hf.mlpg(m, v, windows, lengths=[50, 20]))(*map(jax.numpy.asarray, (means, variances)))
assert found.dtype == np.float32
np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
durations = hf.scale_durations(jax.numpy.asarray([3.0, 4.5, 900.0]), jax.numpy.asarray([1.0, 2.0, 9.0]), total=1000)
assert durations.dtype == np.int32 and int(durations.sum()) == 1000
assert hf.expand_states(jax.numpy.arange(3), durations).dtype == np.int32
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@every_library
def test_no_sequences(name):
    library = LIBRARIES[name]
    means, variances = (x[:0] for x in problem())
    assert run(name, means, variances, COMMON).shape == (0, 9, 2)
    assert hf.apply_windows(library.array(np.zeros((0, 9, 2))), COMMON).shape == (0, 9, 6)
    whole = library.array(np.zeros((0, 3), int))
    assert hf.expand_states(whole, whole, 5).shape == (0, 5)
    assert hf.scale_durations(library.array(np.zeros((0, 3))), library.array(np.ones((0, 3)))).shape == (0, 3)


# what has no solution


def singular():
    means, variances = problem()
    variances[1, 3:6, ::2] = np.inf  # feature 0 of sequence 1: frame 4 is in nothing that counts
    return means, variances


@every_library
def test_frames_that_nothing_determines(name):
    library = LIBRARIES[name]
    means, variances = (library.array(x) for x in singular())
    with pytest.raises(ValueError, match=r"variances: expected enough finite ones .*, got .* sequence 1, feature 0"):
        hf.mlpg(means, variances, COMMON)


@every_library
@pytest.mark.parametrize("windows", [((-0.5, 0, 0.5),), ((-0.5, 0, 0.5), (1, -2, 1)), ((1, -2, 1),)])
def test_differences_alone_leave_a_constant_open(name, windows):
    """Static windows first, of infinite variance, and dynamic ones that do not cross the ends."""
    library = LIBRARIES[name]
    means, variances = problem(num_steps=9 if name == "jax" else 60, windows=len(windows) + 1)
    variances[..., :2] = np.inf
    given = (library.array(x) for x in (means, variances))
    with pytest.raises(ValueError, match="variances: expected enough finite ones"):
        hf.mlpg(*given, ((1,), *windows), edges="hts")


def test_what_cannot_be_read_is_nan_and_nothing_else():
    means, variances = singular()
    wanted = hf.mlpg(*problem(), COMMON)
    is_lost = np.zeros(wanted.shape, bool)
    is_lost[1, :, 0] = True
    given = [torch.from_numpy(x) for x in (means, variances)]
    negative = np.where(np.isinf(variances), -1.0, variances)
    for lost in (variances, negative):
        lost = torch.from_numpy(lost)
        results = [
            torch.vmap(lambda m, v: hf.mlpg(m, v, COMMON))(given[0], lost).numpy(),
            torch.compile(lambda m, v: hf.mlpg(m, v, COMMON), backend="eager")(given[0], lost).numpy(),
            np.asarray(jax.jit(lambda m, v: hf.mlpg(m, v, COMMON))(jnp.asarray(means), jnp.asarray(lost.numpy()))),
        ]
        for found in results:
            assert np.isnan(found[is_lost]).all()
            np.testing.assert_allclose(found[~is_lost], wanted[~is_lost], rtol=1e-10)


@every_library
def test_nan_stays_in_its_feature(name):
    wanted = hf.mlpg(*problem(), COMMON)
    for place in (0, 1):
        given = [x.copy() for x in problem()]
        given[place][0, 3, 1] = np.nan
        found = run(name, *given, COMMON)
        assert np.isnan(found[0, :, 1]).all()
        np.testing.assert_allclose(found[1], wanted[1], rtol=1e-12)
        np.testing.assert_allclose(found[0, :, 0], wanted[0, :, 0], rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"windows": ()}, ValueError, "windows: expected at least one window"),
        ({"windows": 3.0}, ValueError, "windows: expected at least one window"),
        ({"windows": ((1,), (1, -1))}, ValueError, r"windows\[1\]: expected an odd number of coefficients, got 2"),
        ({"windows": ((1,), ())}, ValueError, r"windows\[1\]: expected an odd number of coefficients, got 0"),
        ({"windows": ((1,), (0, 0, 0))}, ValueError, r"windows\[1\]: expected finite coefficients, not all 0"),
        ({"windows": ((1,), (0, np.inf, 0))}, ValueError, r"windows\[1\]: expected finite coefficients"),
        ({"windows": ((1,), "abc")}, TypeError, r"windows\[1\]: expected a sequence of numbers, got 'abc'"),
        ({"windows": (1, 2)}, TypeError, r"windows\[0\]: expected a sequence of numbers, got 1"),
        ({"windows": ((1,),) * 4}, ValueError, r"means: .* W = 4, the number of windows, got \(2, 9, 6\)"),
        ({"means": np.zeros(6)}, ValueError, r"means: expected shape \(..., T, W D\)"),
        ({"means": np.zeros((0, 6))}, ValueError, "means: .* T at least 1"),
        ({"means": np.zeros((9, 6), int)}, TypeError, "means: expected a floating-point dtype"),
        ({"variances": np.ones(5)}, ValueError, r"variances: expected shape .* with W D = 6 as in means, got \(5,\)"),
        ({"variances": np.ones((4, 6))}, ValueError, r"variances: expected T = 9 or 1 frames, got \(4, 6\)"),
        ({"variances": np.zeros(6)}, ValueError, "variances: expected positive ones, got 0.0"),
        ({"variances": torch.ones(6)}, TypeError, "variances: expected an array of numpy, as means is"),
        ({"variances": np.ones((3, 9, 6))}, ValueError, "batch axes must broadcast"),
        ({"edges": "wrap"}, ValueError, "edges: expected one of 'truncate', 'hts', got 'wrap'"),
        ({"lengths": [9, 10]}, ValueError, "lengths: expected values in 1..9"),
        ({"global_variance": 1.0}, TypeError, "global_variance: expected a GlobalVariance, got float"),
    ],
)
def test_what_does_not_fit_is_named(change, error, message):
    given = {"means": np.zeros((2, 9, 6)), "variances": np.ones(6), "windows": COMMON, **change}
    with pytest.raises(error, match=message):
        hf.mlpg(given.pop("means"), given.pop("variances"), given.pop("windows"), **given)


def test_windows_over_what_does_not_fit():
    for x, options, message in (
        (np.zeros(4), {}, r"x: expected shape \(..., T, D\)"),
        (np.zeros((4, 2)), {"edges": "wrap"}, "edges"),
        (np.zeros((4, 2)), {"lengths": 5}, "lengths"),
    ):
        with pytest.raises(ValueError, match=message):
            hf.apply_windows(x, COMMON, **{k: np.array(v) if k == "lengths" else v for k, v in options.items()})


# global variance


def plateaus(size=2, dim=3):
    """States of ten frames, as they come from a model."""
    rng = np.random.default_rng(0)
    scale = np.repeat([1.0, 0.1, 0.05], dim)
    means = np.repeat(rng.normal(size=(size, 12, 3 * dim)) * scale, 10, axis=1)
    return means, np.repeat(rng.uniform(0.5, 2.0, size=(size, 12, 3 * dim)) * scale**1.5, 10, axis=1)


@every_library
def test_a_global_variance_is_nearly_met(name):
    library = LIBRARIES[name]
    means, variances = plateaus()
    lengths = [120, 70]
    plain = hf.mlpg(means, variances, COMMON, lengths=lengths)
    before = np.stack([x[:n].var(0) for x, n in zip(plain, lengths, strict=True)])
    goal = before * np.array([1.5, 2.0, 0.7])
    law = hf.GlobalVariance(library.array(goal), library.array((0.05 * goal) ** 2))
    found = run(name, means, variances, COMMON, lengths=lengths, global_variance=law)
    after = np.stack([x[:n].var(0) for x, n in zip(found, lengths, strict=True)])
    np.testing.assert_allclose(after, goal, rtol=0.01)
    assert (found[1, 70:] == 0).all()
    alone = hf.mlpg(
        means[1, :70], variances[1, :70], COMMON, global_variance=hf.GlobalVariance(goal[1], (0.05 * goal[1]) ** 2)
    )
    np.testing.assert_allclose(found[1, :70], alone, rtol=1e-5, atol=1e-5)


def test_a_global_variance_has_no_derivatives_and_says_so():
    means, variances = plateaus(1, 1)
    x = torch.from_numpy(means).requires_grad_()
    law = hf.GlobalVariance(torch.ones(1), torch.ones(1))
    found = hf.mlpg(x, torch.from_numpy(variances), COMMON, global_variance=law)
    with pytest.raises(NotImplementedError, match="global_variance has no derivatives"):
        found.sum().backward()
    ones = jnp.ones(1)

    def loss(means):
        law = hf.GlobalVariance(ones, ones)
        return hf.mlpg(means, jnp.asarray(variances), COMMON, global_variance=law).sum()

    with pytest.raises(NotImplementedError, match="global_variance has no derivatives"):
        jax.jit(jax.grad(loss))(jnp.asarray(means))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"means": np.ones(3)}, ValueError, r"global_variance.means: expected shape \(..., D\) with D = 2"),
        ({"means": torch.ones(2)}, TypeError, "global_variance.means: expected an array of numpy"),
        ({"variances": np.zeros(2)}, ValueError, "global_variance.variances: expected positive numbers, got 0.0"),
        ({"weight": -1.0}, ValueError, "global_variance.weight: expected a number of at least 0, got -1.0"),
        ({"num_iterations": 1.5}, TypeError, "global_variance.num_iterations: expected an integer"),
    ],
)
def test_global_variances_that_do_not_fit(change, error, message):
    law = hf.GlobalVariance(**{"means": np.ones(2), "variances": np.ones(2), **change})
    with pytest.raises(error, match=message):
        hf.mlpg(*problem(), COMMON, global_variance=law)


# durations


@every_library
def test_known_durations(name):
    library = LIBRARIES[name]

    def found(means, variances, **options):
        return library.numpy(hf.scale_durations(library.array(means), library.array(variances), **options)).tolist()

    assert found([4.0, 10.0, 6.0], [1.0, 9.0, 2.0]) == [4, 10, 6]
    assert found([4.0, 10.0, 6.0], [1.0, 9.0, 2.0], total=32) == [5, 19, 8]  # rho = 1
    assert found([4.0, 10.0, 6.0], [1.0, 8.0, 1.0], rate=2.0) == [3, 2, 5]  # rho = -1
    assert found([4.0, 10.0, 6.0], [0.0, 9.0, 0.0], total=12) == [4, 2, 6]
    assert found([4.0, 10.0, 6.0], [0.0, 9.0, 0.0], total=9) == [3, 1, 5]  # the stiff give way where they must
    assert found([2.5, 2.5, 2.5], [1.0, 1.0, 1.0], total=8) == [3, 3, 2]
    assert found([2.0, 3.0], [0.0, 0.0], total=9) == [4, 5]
    assert found([5.0, 5.0, 5.0], [1.0, 1.0, 1.0], total=3) == [1, 1, 1]
    assert found([0.2, 9.8], [1.0, 1.0], least=0, total=8) == [0, 8]
    assert found([[4.0, 2.0], [3.0, 9.0]], [1.0, 1.0], total=library.array([8, 5]), lengths=[2, 1]) == [[5, 3], [5, 0]]
    assert found([0.1, 0.1], [1.0, 1.0]) == [1, 1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"total": 2}, ValueError, "total: expected at least 3, 1 a state, got 2"),
        ({"total": 5.0}, TypeError, "total: expected an integer, got float"),
        ({"total": 9, "rate": 2.0}, ValueError, "rate: expected none beside total"),
        ({"rate": 0.0}, ValueError, "rate: expected a positive number, got 0.0"),
        ({"rate": np.inf}, ValueError, "rate: expected a positive number"),
        ({"least": -1}, ValueError, "least: expected an integer of at least 0"),
        ({"means": np.zeros(0), "variances": np.zeros(0)}, ValueError, "means: expected at least one state"),
        ({"means": np.array([1.0, np.nan, 1.0])}, ValueError, "means: expected finite"),
        ({"variances": -np.ones(3)}, ValueError, "variances: expected finite ones of at least 0, got -1.0"),
        ({"variances": np.ones(2)}, ValueError, r"variances: expected shape \(..., N\) with N = 3"),
        ({"means": np.arange(3)}, TypeError, "means: expected a floating-point dtype"),
    ],
)
def test_durations_that_do_not_fit(change, error, message):
    given = {"means": np.full(3, 4.0), "variances": np.ones(3), **change}
    with pytest.raises(error, match=message):
        hf.scale_durations(given.pop("means"), given.pop("variances"), **given)


def test_frames_under_jit():
    states, durations = jnp.asarray([5, 6, 7]), jnp.asarray([2, 0, 1])
    found = jax.jit(lambda d: hf.expand_states(states, d, 4))(durations)
    assert found.tolist() == [5, 5, 7, -1]
    with pytest.raises(ValueError, match="num_steps: expected a number"):
        jax.jit(lambda d: hf.expand_states(states, d))(durations)
    scaled = jax.jit(lambda m: hf.scale_durations(m, jnp.ones(3), total=9))(jnp.asarray([1.0, 2.0, 3.0]))
    assert scaled.tolist() == [2, 3, 4]
    stretched = torch.vmap(lambda m: hf.scale_durations(m, torch.ones(3), total=9))(torch.tensor([[1.0, 2.0, 3.0]]))
    assert stretched.tolist() == [[2, 3, 4]]


@pytest.mark.parametrize(
    ("states", "durations", "num_steps", "error", "message"),
    [
        (np.arange(3), np.array([1, -1, 2]), None, ValueError, "durations: expected at least 0, got -1"),
        (np.arange(3), np.array([1, 1, 2]), 3, ValueError, "num_steps: expected at least 4, .* got 3"),
        (np.arange(3), np.ones(3), None, TypeError, "durations: expected an integer dtype"),
        (np.arange(3), np.ones(2, int), None, ValueError, r"durations: expected shape \(..., N\) with N = 3"),
        (np.arange(3), torch.ones(3, dtype=torch.int64), None, TypeError, "durations: expected an array of numpy"),
    ],
)
def test_frames_that_do_not_fit(states, durations, num_steps, error, message):
    with pytest.raises(error, match=message):
        hf.expand_states(states, durations, num_steps)


# the example


def test_the_example_says_the_shipped_sentence_at_another_rate(tmp_path, capsys):
    out = tmp_path / "said.wav"
    assert example.main([str(out), "--rate", "1.25"]) == 0
    assert "248 frames for 310 learned" in capsys.readouterr().out
    samples, rate = soundfile.read(out)
    assert rate == 16_000
    assert len(samples) == 248 * 160
    assert np.isfinite(samples).all()
    assert 0.02 < samples.std() < 0.5  # the sentence has 0.11


def test_the_examples_sound_has_the_spectrum_that_was_generated():
    original = example.load(example.EXAMPLE)
    speech = example.synthesize(original, num_iterations=3)
    heard = log_mel(speech.samples).numpy()
    assert heard.shape == speech.levels.shape == (310, 40)
    assert np.abs(heard - speech.levels).mean() < 0.4  # nepers of power, of which the sentence spans 20
    assert np.corrcoef(heard.ravel(), speech.levels.ravel())[0, 1] > 0.97
    learned = log_mel(original).numpy()
    assert np.corrcoef(speech.levels.ravel(), learned.ravel())[0, 1] > 0.95
    np.testing.assert_allclose(speech.levels.var(0), learned.var(0), rtol=0.1)


def test_the_example_refuses_in_one_line(tmp_path, capsys):
    assert example.main([str(tmp_path / "x.wav"), "--wav", str(tmp_path / "missing.wav")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
