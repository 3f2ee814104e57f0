"""Time warping: known answers, what impossible and broken input gives, options, transforms, the module."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hmm_functional as hf
from pytorch_hmm import DTWAligner
from tests.helpers.warpings import window_of

KERNELS = pytest.mark.parametrize("kernel", ["reference", "numba"])
X = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]]])
Y = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [2.0, 1.0]]])


@KERNELS
def test_by_hand(kernel):
    found = hf.dtw(X, Y, kernel=kernel)
    assert found.distance.tolist() == [0.0, 3.0]  # 1, then 0 once, then 1 twice
    assert found.path.tolist() == [[[0, 0], [1, 1], [2, 1], [-1, -1]], [[0, 0], [1, 0], [2, 1], [-1, -1]]]
    assert hf.dtw(X, Y, step_pattern="symmetric1", kernel=kernel).distance.tolist() == [0.0, 2.0]
    assert hf.dtw(X, Y, normalize=True, kernel=kernel).distance.tolist() == pytest.approx([0.0, 3 / 5])


@KERNELS
def test_ends_may_be_open(kernel):
    y = torch.tensor([[9.0], [9.0], [1.0], [2.0], [3.0], [9.0]])
    options = {"step_pattern": "asymmetric", "kernel": kernel}
    found = hf.dtw(y[2:5], y, open_begin=True, open_end=True, **options)
    assert found.path.tolist() == [[0, 2], [1, 3], [2, 4]]
    assert found.distance == 0
    assert hf.dtw(y[2:5], y[2:], open_end=True, kernel=kernel).path[:3].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert hf.dtw(y[2:5], y[:5], open_begin=True, **options).distance == 0
    assert hf.dtw(y[2:5], y[:5], **options).distance > 0


@KERNELS
def test_the_best_end_is_the_best_a_unit(kernel):
    costs = torch.tensor([[1.0, 2.9, 0.5]])  # 1 / 2, 3.9 / 3, 4.4 / 4
    assert hf.dtw_from_costs(costs, open_end=True, kernel=kernel).path[0].tolist() == [0, 0]
    costs = torch.tensor([[3.0, 1.8]])  # 3 / 2, 4.8 / 3
    assert hf.dtw_from_costs(costs, open_end=True, kernel=kernel).distance == 3
    costs = torch.tensor([[3.0, 1.0, 1.0]])  # 3 / 2, 4 / 3, 5 / 4
    assert hf.dtw_from_costs(costs, open_end=True, kernel=kernel).distance == 5


@KERNELS
@pytest.mark.parametrize("window", ["itakura", ("sakoe_chiba", 2), ("slanted_band", 1)])
@pytest.mark.parametrize("shape", [(7, 9), (40, 35), (1, 1), (33, 33)])
def test_windows_close_cells(kernel, window, shape):
    allowed = window_of(*shape, window)
    costs = np.zeros(shape)
    visits = torch.from_numpy(costs).requires_grad_()
    hf.soft_dtw_from_costs(visits, window=window, kernel=kernel).backward()
    assert not visits.grad[torch.from_numpy(~allowed)].any()
    expected = hf.dtw_from_costs(np.where(allowed, costs, np.inf), kernel="reference").distance
    assert hf.dtw_from_costs(costs, window=window, kernel=kernel).distance == expected


@KERNELS
def test_what_has_no_path(kernel):
    x = X.clone().requires_grad_()
    options = {"window": ("sakoe_chiba", 0), "kernel": kernel}
    found = hf.dtw(x, Y, **options)
    softly = hf.soft_dtw(x, Y, **options)
    assert found.distance.tolist() == softly.tolist() == [np.inf, np.inf]
    assert found.path.eq(-1).all()
    (found.distance.sum() + softly.sum()).backward()
    assert x.grad.eq(0).all()
    assert hf.soft_dtw_alignment(X, Y, **options).eq(0).all()


@KERNELS
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_frames_touch_their_own_pair(kernel, value):
    x = X.clone()
    x[0, 1, 0] = value
    found = hf.dtw(x, Y, kernel=kernel)
    assert found.distance.isnan().tolist() == [True, False]
    assert found.path[0].eq(-1).all()
    assert torch.equal(found.path[1], hf.dtw(X, Y).path[1])
    assert hf.soft_dtw(x, Y, kernel=kernel).isnan().tolist() == [True, False]
    assert hf.soft_dtw_alignment(x, Y, kernel=kernel).isnan().all((1, 2)).tolist() == [True, False]
    costs = torch.rand(2, 3, 3)
    costs[0, 1, 1] = -value
    assert hf.dtw_from_costs(costs, kernel=kernel).distance.isnan().tolist() == [True, False]
    assert hf.soft_dtw_from_costs(costs, kernel=kernel).isnan().tolist() == [True, False]


def test_batches_and_dtypes():
    shared = hf.dtw(X[0], Y)
    assert shared.distance.shape == (2,)
    assert shared.distance[1] == hf.dtw(X[0], Y[1]).distance
    grid = hf.dtw(X[:, None], Y)
    assert grid.path.shape == (2, 2, 4, 2)
    assert hf.dtw(X[:0], Y[:0]).path.shape == (0, 4, 2)
    assert hf.soft_dtw(X[:0], Y[:0]).shape == (0,)
    assert hf.dtw(X.half(), Y.half()).distance.dtype == torch.float32
    assert hf.dtw(X, Y).path.dtype == torch.int64
    # what is shared has the sum of the gradients
    x = X[0].clone().requires_grad_()
    hf.soft_dtw(x, Y).sum().backward()
    apart = X[0].expand(2, 3, 2).clone().requires_grad_()
    hf.soft_dtw(apart, Y).sum().backward()
    torch.testing.assert_close(x.grad, apart.grad.sum(0))


@KERNELS
def test_steps_in_both_weigh_twice(kernel):
    costs = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)  # three paths, of equal weight
    found = hf.soft_dtw_from_costs(costs, step_pattern="symmetric2", kernel=kernel)
    found.backward()
    assert found.item() == pytest.approx(-np.log(3))
    torch.testing.assert_close(costs.grad, torch.tensor([[3.0, 1.0], [1.0, 4.0]], dtype=torch.float64) / 3)


def test_float32_loses_nothing_over_long_sequences():
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=(1500, 2)).cumsum(0)).float() for _ in range(2))
    for function in (lambda a, b: hf.dtw(a, b).distance, hf.soft_dtw):
        exact = function(x.double(), y.double())
        assert abs(function(x, y).double() - exact) < 2e-7 * exact


def test_divergence():
    assert hf.soft_dtw_divergence(X, X).abs().max() < 1e-6
    assert (hf.soft_dtw_divergence(X, Y) > 0).all()
    x = X.double()
    x[1, 2] = torch.nan
    found = hf.soft_dtw_divergence(x, Y.double(), lengths=[3, 2])
    alone = hf.soft_dtw_divergence(x[1, :2], Y[1].double())
    torch.testing.assert_close(found[1], alone)


def test_transforms():
    x, y = X.double(), Y.double()
    grad = torch.func.vmap(torch.func.grad(hf.soft_dtw))(x, y)
    torch.testing.assert_close(grad, torch.func.grad(lambda a: hf.soft_dtw(a, y).sum())(x))
    assert torch.equal(torch.func.vmap(lambda a, b: hf.dtw(a, b).path)(x, y), hf.dtw(x, y).path)
    hessian = torch.func.hessian(lambda a: hf.soft_dtw(a, y[0]))(x[0]).reshape(6, 6)
    torch.testing.assert_close(hessian, hessian.T)
    step = 1e-4
    moved = x[0].clone()
    moved[1, 1] += step
    slope = torch.func.grad(lambda a: hf.soft_dtw(a, y[0]))
    torch.testing.assert_close(hessian[:, 3], ((slope(moved) - slope(x[0])) / step).flatten(), rtol=1e-3, atol=1e-3)


def test_the_compiler_takes_it_whole():
    def both(x, y):
        found = hf.dtw(x, y)
        return found.distance.sum() + hf.soft_dtw(x, y).sum(), found.path

    x = X.clone().requires_grad_()
    value, path = torch.compile(both, fullgraph=True, backend="aot_eager")(x, Y)
    value.backward()
    again = X.clone().requires_grad_()
    expected, known = both(again, Y)
    expected.backward()
    torch.testing.assert_close(x.grad, again.grad)
    assert torch.equal(path, known)


def test_third_derivatives_raise():
    x = X[0].double().requires_grad_()
    (first,) = torch.autograd.grad(hf.soft_dtw(x, Y[0].double()), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        second.sum().backward()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"step_pattern": "symmetric3"}, ValueError, "step_pattern: expected one of 'symmetric1'"),
        ({"window": ("sakoe_chiba",)}, ValueError, "window: expected"),
        ({"window": ("sakoe_chiba", -1)}, ValueError, "radius of sakoe_chiba"),
        ({"window": 3}, ValueError, "window: expected"),
        ({"open_begin": True}, ValueError, "open_begin: expected step_pattern"),
        ({"step_pattern": "symmetric1", "open_end": True}, ValueError, "open_end"),
        ({"step_pattern": "symmetric1", "normalize": True}, ValueError, "normalize"),
        ({"lengths": [4, 1]}, ValueError, "lengths: expected values in 1..3"),
        ({"target_lengths": [3, 1]}, ValueError, "target_lengths: expected values in 1..2"),
        ({"lengths": [1, 1, 1]}, ValueError, "batch axes must broadcast"),
        ({"kernel": "fast"}, ValueError, "kernel: expected one of"),
    ],
)
def test_options_that_do_not_fit(options, error, words):
    with pytest.raises(error, match=words):
        hf.dtw(X, Y, **options)


def test_arrays_that_do_not_fit():
    with pytest.raises(ValueError, match=r"y: expected shape \(..., M, D\) with D = 2"):
        hf.dtw(X, Y[..., :1])
    with pytest.raises(ValueError, match="x: expected at least one frame"):
        hf.dtw(X[:, :0], Y)
    with pytest.raises(TypeError, match="floating"):
        hf.dtw(X.long(), Y)
    with pytest.raises(TypeError, match="one library"):
        hf.dtw(X, Y.numpy())
    with pytest.raises(ValueError, match="gamma"):
        hf.soft_dtw(X, Y, gamma=0.0)
    with pytest.raises(TypeError, match="gamma"):
        hf.soft_dtw(X, Y, gamma="1")


def test_the_module():
    aligner = DTWAligner(window=("sakoe_chiba", 3), normalize=True)
    assert "sakoe_chiba" in repr(aligner)
    x = torch.tensor([[[0.0], [1.0], [1.0], [5.0]], [[2.0], [9.0], [9.0], [9.0]]]).requires_grad_()
    y = torch.tensor([[[0.0], [0.5], [1.0], [5.0]], [[1.0], [3.0], [9.0], [9.0]]]).requires_grad_()
    found = aligner.align(x, y, [4, 1], [4, 2])
    torch.testing.assert_close(found.distance, aligner(x, y, [4, 1], [4, 2]))
    assert found.warped[1, :, 0].tolist() == [2.0, 0.0, 0.0, 0.0]  # 1 and 3 meet the one frame
    assert found.warped[0, -1] == 5.0
    found.warped.sum().backward()
    assert y.grad[1, :, 0].tolist() == [0.5, 0.5, 0.0, 0.0]
    assert DTWAligner(window=("sakoe_chiba", 0)).align(x[:, :2], y).warped.isnan().all()
    assert DTWAligner().align(x[0], y).warped.shape == (2, 4, 1)
    with pytest.raises(ValueError, match="open_begin"):
        DTWAligner(open_begin=True)


@pytest.mark.parametrize("pattern", ["symmetric2", "asymmetric"])
def test_normalized_where_no_path_is_allowed(pattern: str) -> None:
    costs = np.array([[[1.0, np.inf]], [[1.0, 2.0]]])[:, [0, 0], :]
    costs[0] = np.inf
    assert hf.dtw_from_costs(costs, step_pattern=pattern, normalize=True).distance[0] == np.inf
    given = torch.tensor(costs, requires_grad=True)
    hf.dtw_from_costs(given, step_pattern=pattern, normalize=True).distance.sum().backward()
    assert given.grad is not None
    assert given.grad[0].eq(0).all()
    assert given.grad[1].sum() > 0
