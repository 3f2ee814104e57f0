"""Bad inputs raise the right class, and the message names the argument, what was wanted and what came."""

from __future__ import annotations

import numpy as np
import pytest

import hmm_functional as hf
from tests.helpers.backends import JAX, LIBRARIES, NUMPY, TORCH, build_transition, kernel_names
from tests.helpers.models import random_model

CHAIN = {
    "log_likelihood": {},
    "forward": {},
    "forward_backward": {},
    "pair_posteriors": {},
    "expected_transitions": {},
    "viterbi": {},
    "viterbi_k_best": {"k": 2},
    "sample_posterior": {"num_samples": 2},
    "log_joint": {},
    "posterior_entropy": {},
    "smooth_fixed_lag": {"lag": 1},
    "posterior_decode": {},
    "forecast": {"num_steps": 2},
}
LIBRARY_NAMES = ("numpy", "torch", "jax")
every_function = pytest.mark.parametrize("name", CHAIN)
every_library = pytest.mark.parametrize("library", LIBRARY_NAMES)


def options_of(library, name, steps=4):
    options = dict(CHAIN[name])
    if name == "sample_posterior":
        options["rng"] = library.rng(0)
    if name == "log_joint":
        options["states"] = library.array(np.zeros((2, steps), np.int64))
    return options


def good(library):
    shapes = {"log_initial": (3,), "log_transition": (3, 3), "log_emission": (2, 4, 3)}
    return {argument: library.array(np.zeros(shape)) for argument, shape in shapes.items()}


def run(library, name, given, **more):
    """Eagerly, whatever the library."""
    given = dict(given)
    positional = [given.pop(argument) for argument in ("log_initial", "log_transition", "log_emission")]
    return getattr(hf, name)(*positional, **given, **{**options_of(library, name), **more})


def fails(error, library, name, words, given=None, **more):
    """The call raises exactly this class, and its message holds all the words."""
    with pytest.raises(error) as caught:
        run(library, name, good(library) if given is None else given, **more)
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {str(caught.value)!r}"


@every_function
@every_library
def test_good_inputs_pass(library, name):
    """So that the failures below are of what they change."""
    library = LIBRARIES[library]
    assert run(library, name, good(library)) is not None


WRONG_SHAPES = [
    ("log_initial", (4,)),
    ("log_initial", ()),
    ("log_transition", (3, 4)),
    ("log_transition", (4, 4)),
    ("log_transition", (3,)),
    ("log_transition", (2, 3, 3)),  # neither 1 nor T - 1 slots
    ("log_transition", (4, 3, 3)),
    ("log_emission", (3,)),
    ("log_emission", (2, 4, 5)),
    ("log_emission", (2, 0, 3)),
]


@every_function
@pytest.mark.parametrize(("argument", "shape"), WRONG_SHAPES)
def test_wrong_shapes(name, argument, shape):
    """K is log_emission's last size where it can be told; a mismatch may be blamed on either side of it."""
    library = NUMPY
    given = good(library) | {argument: library.array(np.zeros(shape))}
    with pytest.raises(ValueError, match="log_") as caught:
        run(library, name, given)
    message = str(caught.value)
    assert any(named in message for named in (argument, "log_emission")), message
    came = str(tuple(shape))
    if argument in message:
        assert came in message or str(shape[-1] if shape else ()) in message, message


@every_library
@pytest.mark.parametrize(("argument", "shape"), WRONG_SHAPES)
def test_wrong_shapes_in_every_library(library, argument, shape):
    library = LIBRARIES[library]
    with pytest.raises(ValueError, match=r"log_\w+.*\(.*\)"):
        run(library, "log_likelihood", good(library) | {argument: library.array(np.zeros(shape))})


@every_function
@pytest.mark.parametrize("argument", ["log_initial", "log_transition", "log_emission"])
@pytest.mark.parametrize("dtype", [np.int64, np.complex128, bool])
def test_scores_are_floating(name, argument, dtype):
    given = good(NUMPY)
    given[argument] = given[argument].astype(dtype)
    fails(TypeError, NUMPY, name, [argument, "float", np.dtype(dtype).name], given)


@every_library
def test_integer_emission_in_every_library(library):
    library = LIBRARIES[library]
    given = good(library) | {"log_emission": library.array(np.zeros((2, 4, 3), np.int64))}
    fails(TypeError, library, "log_likelihood", ["log_emission", "int64"], given)


@every_function
@pytest.mark.parametrize("argument", ["log_initial", "log_transition", "log_emission"])
def test_lists_are_no_arrays(name, argument):
    given = good(NUMPY)
    given[argument] = given[argument].tolist()
    fails(TypeError, NUMPY, name, [argument, "array", "list"], given)


@every_function
@pytest.mark.parametrize("argument", ["log_initial", "log_transition", "log_emission"])
def test_two_libraries_in_one_call(name, argument):
    for one, other in ((NUMPY, TORCH), (TORCH, NUMPY), (JAX, TORCH), (NUMPY, JAX)):
        fails(TypeError, one, name, ["log_", one.name, other.name], good(one) | {argument: good(other)[argument]})


@every_library
@pytest.mark.parametrize("form", ["banded", "sparse", "low_rank"])
def test_two_libraries_by_a_structure(library, form):
    library = LIBRARIES[library]
    other = TORCH if library is NUMPY else NUMPY
    given = good(library) | {"log_transition": build_transition(other, form, np.zeros((3, 3)))}
    fails(TypeError, library, "log_likelihood", ["log_", library.name, other.name], given)


def test_two_libraries_by_log_final_and_within_low_rank():
    fails(TypeError, TORCH, "viterbi", ["log_final", "torch", "numpy"], log_final=np.zeros(3))

    def mixed():  # when it is made or when it is used
        return hf.LowRank(np.zeros((3, 2)), TORCH.array(np.zeros((2, 3))))

    with pytest.raises(TypeError, match="log_right"):
        run(NUMPY, "log_likelihood", good(NUMPY) | {"log_transition": mixed()})


@every_function
@pytest.mark.parametrize(("lengths", "bad"), [([4, 0], 0), ([5, 4], 5), ([-1, 2], -1), (np.array([4, 9]), 9)])
def test_lengths_out_of_range(name, lengths, bad):
    wanted = "1" if bad < 1 else "4"
    fails(ValueError, NUMPY, name, ["lengths", wanted, str(bad)], lengths=lengths)


@every_library
def test_lengths_of_wrong_shape_or_type(library):
    library = LIBRARIES[library]
    for lengths in ([1, 2, 3], library.array(np.ones((3,), np.int64))):
        with pytest.raises(ValueError, match="lengths"):
            run(library, "forward_backward", good(library), lengths=lengths)
    for lengths in ([1.5, 2.0], library.array(np.array([1.0, 2.0])), [True, True], "ab"):
        with pytest.raises((TypeError, ValueError), match="lengths"):
            run(library, "forward_backward", good(library), lengths=lengths)
    fails(ValueError, library, "log_likelihood", ["lengths"], lengths=library.array(np.array([0, 4])))


@every_function
def test_log_final_of_wrong_shape_or_type(name):
    for shape in ((4,), (), (5, 3)):
        with pytest.raises(ValueError, match="log_final"):
            run(NUMPY, name, good(NUMPY), log_final=np.zeros(shape))
    fails(TypeError, NUMPY, name, ["log_final", "int64"], log_final=np.zeros(3, np.int64))
    fails(TypeError, NUMPY, name, ["log_final", "list"], log_final=[0.0, 0.0, 0.0])


@every_function
def test_batch_axes_that_do_not_broadcast(name):
    given = good(NUMPY) | {"log_initial": np.zeros((5, 3))}
    with pytest.raises(ValueError, match="log_initial") as caught:
        run(NUMPY, name, given)
    assert "(5,)" in str(caught.value)
    assert "(2,)" in str(caught.value)


@every_function
@every_library
def test_unknown_kernel(library, name):
    library = LIBRARIES[library]
    fails(ValueError, library, name, ["kernel", "'fastest'", *kernel_names()], kernel="fastest")


@every_library
def test_counts_below_their_least(library):
    library = LIBRARIES[library]
    for name, option, least in (
        ("viterbi_k_best", "k", 1),
        ("smooth_fixed_lag", "lag", 0),
        ("forecast", "num_steps", 1),
        ("sample_posterior", "num_samples", 1),
    ):
        fails(ValueError, library, name, [option, str(least), str(least - 1)], **{option: least - 1})
        fails(TypeError, library, name, [option, "float"], **{option: 1.5})
    with pytest.raises(ValueError, match="num_steps"):
        hf.sample(library.array(np.zeros(2)), library.array(np.zeros((2, 2))), num_steps=0, rng=library.rng(0))
    with pytest.raises(ValueError, match="lag"):
        hf.stream_init(library.array(np.zeros(2)), library.array(np.zeros((2, 2))), lag=-1)


@every_library
def test_random_functions_need_a_source_of_their_library(library):
    library = LIBRARIES[library]
    wrong = TORCH if library is NUMPY else NUMPY
    given = good(library)
    positional = given["log_initial"], given["log_transition"]
    with pytest.raises(TypeError, match="rng"):
        hf.sample_posterior(*positional, given["log_emission"], num_samples=2)
    with pytest.raises(TypeError, match="rng"):
        hf.sample(*positional, num_steps=2)
    for bad in (wrong.rng(0), 0, None):
        with pytest.raises(TypeError, match="rng"):
            hf.sample_posterior(*positional, given["log_emission"], rng=bad, num_samples=2)
        with pytest.raises(TypeError, match="rng"):
            hf.sample(*positional, num_steps=2, rng=bad)


@every_library
def test_states_of_log_joint(library):
    library = LIBRARIES[library]
    with pytest.raises(TypeError, match="states"):
        run(library, "log_joint", good(library), states=library.array(np.zeros((2, 4))))
    with pytest.raises(ValueError, match="states"):
        run(library, "log_joint", good(library), states=library.array(np.zeros((2, 5), np.int64)))


@every_library
def test_structures(library):
    library = LIBRARIES[library]

    def zeros(*shape):
        return library.array(np.zeros(shape))

    bad = [
        (lambda: hf.Banded(zeros(2, 3), (1, 1)), ["offsets", "(1, 1)"]),
        (lambda: hf.Banded(zeros(2, 3), (0, 1, 2)), ["log_bands", "(2, 3)"]),
        (lambda: hf.Banded(zeros(3), (0,)), ["log_bands", "(3,)"]),
        (lambda: hf.Sparse(zeros(2), [0, 3], [1, 1], 3), ["sources", "3"]),
        (lambda: hf.Sparse(zeros(2), [0, 1], [1, -1], 3), ["targets", "-1"]),
        (lambda: hf.Sparse(zeros(2), [0, 0], [1, 1], 3), ["sources"]),
        (lambda: hf.Sparse(zeros(3), [0, 1], [1, 1], 3), ["log_weights", "(3,)"]),
        (lambda: hf.Sparse(zeros(2), [0, 1], [1], 3), ["targets"]),
        (lambda: hf.LowRank(zeros(3, 2), zeros(4, 3)), ["log_right", "(4, 3)"]),
        (lambda: hf.LowRank(zeros(3, 2), zeros(2, 4)), ["log_right", "(2, 4)"]),
        (lambda: hf.LowRank(zeros(3), zeros(2, 3)), ["log_left", "(3,)"]),
    ]
    for build, words in bad:
        with pytest.raises(ValueError, match=words[0]) as caught:
            build()
        for word in words:
            assert word in str(caught.value)


@every_function
@pytest.mark.parametrize("form", ["banded", "sparse", "low_rank"])
def test_structures_of_another_number_of_states_or_steps(name, form):
    for shape in ((4, 4), (2, 3, 3)):
        given = good(NUMPY) | {"log_transition": build_transition(NUMPY, form, np.zeros(shape))}
        with pytest.raises(ValueError, match=r"log_(transition|bands|weights|left|right|emission)"):
            run(NUMPY, name, given)


@every_library
def test_masks(library):
    library = LIBRARIES[library]
    emission = good(library)["log_emission"]
    with pytest.raises(ValueError, match="is_observed"):
        hf.mask_emission(emission, library.array(np.ones((2, 5), bool)))
    with pytest.raises(ValueError, match="is_allowed"):
        hf.restrict_states(emission, library.array(np.ones((2, 4, 2), bool)))
    with pytest.raises(TypeError, match="is_observed"):
        hf.mask_emission(emission, library.array(np.ones((2, 4))))


@every_function
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("form", ["dense", "banded", "sparse", "low_rank"])
def test_inputs_are_never_written_to(name, library, form):
    """With -inf, NaN, padding and a float32 batch, in which a careless version would tidy up."""
    library = LIBRARIES[library]
    for dtype in (np.float32, np.float64):
        model = random_model(np.random.default_rng(0), batch=(2,), num_steps=4, num_states=3, zeros=0.2)
        emission = np.array(model.log_emission)
        emission[1, 3] = np.nan
        arrays = {
            "log_initial": library.array(model.log_initial, dtype),
            "log_emission": library.array(emission, dtype),
            "log_final": library.array(np.array([0.0, -np.inf, 1.0]), dtype),
            "lengths": library.array(np.array([4, 3])),
        }
        transition = build_transition(library, form, model.log_transition, dtype=dtype)
        parts = [getattr(transition, field, None) for field in ("log_bands", "log_weights", "log_left", "log_right")]
        watched = [*arrays.values(), *(part for part in parts if part is not None)]
        watched += [transition] if form == "dense" else []
        before = [np.array(library.numpy(x)) for x in watched]
        run(library, name, arrays | {"log_transition": transition})
        for one, other in zip(before, watched, strict=True):
            np.testing.assert_array_equal(one, library.numpy(other))


@every_library
def test_results_do_not_alias_inputs(library):
    """Writing into a result must not change an input: torch and NumPy arrays are mutable."""
    library = LIBRARIES[library]
    if library is JAX:
        emission = good(JAX)["log_emission"]
        assert hf.mask_emission(emission, JAX.array(np.ones((2, 4), bool))).shape == emission.shape
        return
    given = {name: library.array(np.zeros(s)) for name, s in (("i", (1,)), ("t", (1, 1)), ("e", (1, 1)))}
    results = [
        hf.forward(*given.values()).log_filtered,
        hf.forward_backward(*given.values()).log_posteriors,
        hf.mask_emission(given["e"], library.array(np.ones(1, bool))),
        hf.restrict_states(given["e"], library.array(np.ones((1, 1), bool))),
    ]
    for result in results:
        assert not np.shares_memory(library.numpy(result), library.numpy(given["e"]))
