"""Array libraries, transition forms and kernels, as parameters of tests."""

from __future__ import annotations

from functools import cache

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import torch

import hmm_functional as hf
from hmm_functional.kernels import registry
from tests.helpers.models import random_log

jax.config.update("jax_enable_x64", True)

STATIC = frozenset(
    {"kernel", "censored", "k", "lag", "num_steps", "num_samples", "batch_shape", "blank", "num_tokens", "posteriors"}
)


class NumpyLibrary:
    """NumPy; its arrays are read-only, so that a write to an input raises."""

    name = "numpy"
    namespace = np

    def array(self, value, dtype=None):
        value = np.array(value) if dtype is None else np.array(value, dtype=dtype)
        value.flags.writeable = False
        return value

    def numpy(self, value):
        return np.asarray(value)

    def rng(self, seed):
        return np.random.default_rng(seed)

    def call(self, name, *args, **kwargs):
        return getattr(hf, name)(*args, **kwargs)


class StrictLibrary(NumpyLibrary):
    """The array API standard and nothing else: shows that the one source uses no extra of a library."""

    name = "strict"
    namespace = array_api_strict

    def array(self, value, dtype=None):
        return array_api_strict.asarray(np.array(super().array(value, dtype)))

    def numpy(self, value):
        return np.from_dlpack(value) if isinstance(value, array_api_strict._array_object.Array) else np.asarray(value)


class TorchLibrary(NumpyLibrary):
    name = "torch"
    namespace = torch

    def array(self, value, dtype=None):
        return torch.from_numpy(np.array(value) if dtype is None else np.array(value, dtype=dtype))

    def numpy(self, value):
        return value.detach().numpy()

    def rng(self, seed):
        return torch.Generator().manual_seed(seed)


class JaxLibrary(NumpyLibrary):
    """JAX; calls are compiled once for each function, options and shapes. `eager` calls are not."""

    name = "jax"
    namespace = jnp

    def array(self, value, dtype=None):
        return jnp.asarray(np.array(value) if dtype is None else np.array(value, dtype=dtype))

    def rng(self, seed):
        return jax.random.key(seed)

    def call(self, name, *args, **kwargs):
        static = tuple(sorted((key, kwargs.pop(key)) for key in STATIC & kwargs.keys()))
        return _compiled(name, static)(args, kwargs)

    def eager(self, name, *args, **kwargs):
        return getattr(hf, name)(*args, **kwargs)


@cache
def _compiled(name, static):
    return jax.jit(lambda args, kwargs: getattr(hf, name)(*args, **kwargs, **dict(static)))


NUMPY, STRICT, TORCH, JAX = NumpyLibrary(), StrictLibrary(), TorchLibrary(), JaxLibrary()
LIBRARIES = {library.name: library for library in (NUMPY, STRICT, TORCH, JAX)}
PUBLIC_LIBRARIES = ("numpy", "torch", "jax")


def kernel_names():
    """Every name `kernel=` takes."""
    return tuple(dict.fromkeys((*ALWAYS, *registry.names())))


# Kernels in the source itself serve every call; others may decline one, with the reason.
ALWAYS = ("auto", "reference", "parallel")


def assert_declines(kernel, error, always=ALWAYS):
    """The error of a call that a named kernel, none of `always`, cannot serve: it names the kernel and says why."""
    message = str(error)
    assert kernel not in always, message
    assert "kernel" in message, message
    assert repr(kernel) in message, message
    assert len(message) > len(kernel) + 20, f"no reason in {message!r}"


FORMS = ("dense", "banded", "sparse", "low_rank")


def all_offsets(num_states):
    """Every diagonal, out of order and with one beyond the range, which is ignored."""
    return (0, *range(num_states, 0, -1), *range(1 - num_states, 0))


def sparse_edges(num_states, offsets=None):
    """Every edge (or those of a band), shuffled: (sources, targets)."""
    i, j = np.divmod(np.arange(num_states**2), num_states)
    keep = np.ones(len(i), bool) if offsets is None else np.isin(j - i, offsets)
    order = np.random.default_rng(num_states).permutation(np.flatnonzero(keep))
    return i[order], j[order]


def bands_of(matrix, offsets, beyond=50.0):
    """Bands (..., O, K) of matrices (..., K, K); entries that leave the range hold `beyond`."""
    num_states = matrix.shape[-1]
    bands = np.full((*matrix.shape[:-2], len(offsets), num_states), beyond, matrix.dtype)
    for o, offset in enumerate(offsets):
        for i in range(num_states):
            if 0 <= i + offset < num_states:
                bands[..., o, i] = matrix[..., i, i + offset]
    return bands


def build_transition(library, form, matrix, *, dtype=None, offsets=None, beyond=50.0):
    """A dense (..., K, K) NumPy transition in another form of the same meaning."""
    num_states = matrix.shape[-1]
    if form == "dense":
        return library.array(matrix, dtype)
    if form == "banded":
        offsets = offsets or all_offsets(num_states)
        return hf.Banded(library.array(bands_of(matrix, offsets, beyond), dtype), offsets)
    if form == "sparse":
        sources, targets = sparse_edges(num_states, offsets)
        return hf.Sparse(library.array(matrix[..., sources, targets], dtype), sources, targets, num_states)
    identity = np.broadcast_to(np.where(np.eye(num_states) > 0, 0.0, -np.inf), matrix.shape)
    return hf.LowRank(library.array(identity, dtype), library.array(matrix, dtype))


def counts_as_dense(form, counts, num_states, offsets=None):
    """`expected_transitions` in the shape of a form's own weights, back to (..., K, K)."""
    if form == "dense":
        return counts
    if form == "low_rank":  # left is the identity, so the right factor's counts are the matrix's
        left, right = counts
        diagonal, rounding = np.diagonal(left, axis1=-2, axis2=-1), 1e4 * np.finfo(left.dtype).eps
        np.testing.assert_allclose(diagonal, right.sum(-1), rtol=rounding, atol=rounding)
        return right
    if form == "banded":
        offsets = offsets or all_offsets(num_states)
        dense = np.zeros((*counts.shape[:-2], num_states, num_states), counts.dtype)
        for o, offset in enumerate(offsets):
            for i in range(num_states):
                if 0 <= i + offset < num_states:
                    dense[..., i, i + offset] = counts[..., o, i]
                else:
                    np.testing.assert_array_equal(counts[..., o, i], 0.0)
        return dense
    sources, targets = sparse_edges(num_states, offsets)
    dense = np.zeros((*counts.shape[:-1], num_states, num_states), counts.dtype)
    dense[..., sources, targets] = counts
    return dense


def arguments(library, model, form="dense", *, dtype=None, offsets=None):
    """A model as (positional, keyword) arguments of a chain function."""
    transition = build_transition(library, form, model.log_transition, dtype=dtype, offsets=offsets)
    positional = (library.array(model.log_initial, dtype), transition, library.array(model.log_emission, dtype))
    keyword = {}
    if model.lengths is not None:
        keyword["lengths"] = library.array(np.asarray(model.lengths))
    if model.log_final is not None:
        keyword["log_final"] = library.array(model.log_final, dtype)
    return positional, keyword


def call(library, name, model, form="dense", *, dtype=None, offsets=None, **options):
    """A chain function of a model, as NumPy arrays in the function's own result type."""
    positional, keyword = arguments(library, model, form, dtype=dtype, offsets=offsets)
    result = library.call(name, *positional, **keyword, **options)
    return as_numpy(library, result)


def as_numpy(library, result):
    """An array, a tuple of arrays or a NamedTuple of arrays, in NumPy."""
    if not isinstance(result, tuple):
        return library.numpy(result)
    parts = [library.numpy(part) for part in result]
    return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)


def random_low_rank(rng, num_states, rank, *, zeros=0.0):
    """Random factors (K, R), (R, K) and the dense matrix they stand for."""
    left = random_log(rng, (num_states, rank), zeros=zeros)
    right = random_log(rng, (rank, num_states), zeros=zeros)
    return left, right, np.logaddexp.reduce(left[:, :, None] + right[None], axis=1)
