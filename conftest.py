"""Settings of every test: the laws' number of examples, JAX in double precision, one thread a worker."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from hypothesis import HealthCheck, settings

# derandomize is spelled out since hypothesis turns it on wherever CI is set; a nightly run is to try new examples
for name, max_examples in (("dev", 25), ("ci", 150), ("nightly", 3000)):
    settings.register_profile(
        name,
        max_examples=max_examples,
        deadline=None,
        derandomize=name == "ci",
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

if "PYTEST_XDIST_WORKER" in os.environ:
    # workers that share the cores are many times slower with more; the environment is for their subprocesses
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if find_spec("jax") is not None:
    import jax

    # not by the environment, which the subprocesses that test x64 off would inherit
    jax.config.update("jax_enable_x64", True)
    # compiling is what tests of JAX spend their time on: a third less of it, with the same answers
    jax.config.update("jax_disable_most_optimizations", True)

# doctests import every file; these need a library that may be absent
collect_ignore_glob = [
    pattern
    for library, pattern in (
        ("jax", "*/*/jax_*.py"),
        ("numba", "*/*/numba_*.py"),
        ("triton", "*/*/triton_*.py"),
        ("dynamax", "*/*/dynamax.py"),
        ("pomegranate", "*/*/pomegranate.py"),
    )
    if find_spec(library) is None
]
