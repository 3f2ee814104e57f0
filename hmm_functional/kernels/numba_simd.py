"""Vectors of LLVM as values of Numba, so that kernels say which loop fills the lanes instead of hoping for it.

A `Vec` is 64 bytes: 8 float64 or 16 float32 lanes; LLVM splits it where registers are shorter. Infix operators and
comparisons work lane by lane and never reassociate. Pointers are `CPointer`s; offsets count elements.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import PrimitiveModel
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, register_model

BYTES = 64


class Vec(types.Type):
    """Lanes of a floating, integer or boolean element."""

    def __init__(self, element: Any, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(name=f"Vec({element}, {lanes})")


def ir_element(element: Any) -> Any:
    if element == types.float64:
        return ir.DoubleType()
    if element == types.float32:
        return ir.FloatType()
    return ir.IntType(1 if element == types.boolean else element.bitwidth)


@register_model(Vec)
class _VecModel(PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, ir.VectorType(ir_element(fe_type.element), fe_type.lanes))


def is_float(vec: Any) -> bool:
    return isinstance(vec, Vec) and vec.element in (types.float64, types.float32)


def mask_of(vec: Any) -> Any:
    return Vec(types.boolean, vec.lanes)


def int_of(vec: Any) -> Any:
    return Vec(types.int64 if vec.element == types.float64 else types.int32, vec.lanes)


# Operators

_ARITHMETIC: dict[Any, tuple[Any, Any]] = {
    operator.add: ("fadd", "add"),
    operator.sub: ("fsub", "sub"),
    operator.mul: ("fmul", "mul"),
    operator.truediv: ("fdiv", None),
    operator.and_: (None, "and_"),
    operator.or_: (None, "or_"),
    operator.lshift: (None, "shl"),
    operator.rshift: (None, "ashr"),
}
_COMPARISONS = {
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}


def _register_arithmetic(function: Any, names: tuple[Any, Any]) -> None:
    @infer_global(function)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vec) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(function, Vec, Vec)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, names[0 if is_float(sig.args[0]) else 1])(*args)


def _register_comparison(function: Any, sign: str) -> None:
    @infer_global(function)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vec) and args[0] == args[1]:
                return signature(mask_of(args[0]), *args)
            return None

    @lower_builtin(function, Vec, Vec)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if is_float(sig.args[0]):  # NaN is equal to nothing and different from everything
            compare = builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered
            return compare(sign, *args)
        return builder.icmp_signed(sign, *args)


for _function, _names in _ARITHMETIC.items():
    _register_arithmetic(_function, _names)
for _function, _sign in _COMPARISONS.items():
    _register_comparison(_function, _sign)


# Memory


def _address(context: Any, builder: Any, pointer: Any, place: Any, element: Any, lanes: int) -> Any:
    where = builder.gep(pointer, [place])
    return builder.bitcast(where, ir.VectorType(ir_element(element), lanes).as_pointer())


def _size(element: Any) -> int:
    return element.bitwidth // 8


def make_load(vec: Any, memory: Any) -> Any:
    """load(pointer to `memory`, place): `lanes` elements as a `vec`, converted."""

    @intrinsic
    def load(typingctx: Any, pointer: Any, place: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            where = _address(context, builder, args[0], args[1], memory, vec.lanes)
            found = builder.load(where, align=_size(memory))
            return _convert(builder, found, memory, vec)

        return vec(types.CPointer(memory), types.int64), lower

    return load


def make_store(vec: Any, memory: Any) -> Any:
    """store(pointer to `memory`, place, value): the lanes of a `vec`, converted."""

    @intrinsic
    def store(typingctx: Any, pointer: Any, place: Any, value: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            where = _address(context, builder, args[0], args[1], memory, vec.lanes)
            builder.store(_convert_back(builder, args[2], memory, vec), where, align=_size(memory))
            return context.get_dummy_value()

        return types.none(types.CPointer(memory), types.int64, vec), lower

    return store


def make_store_integers(vec: Any, memory: Any) -> Any:
    """store(pointer to `memory`, place, integer lanes): their low bits."""

    @intrinsic
    def store(typingctx: Any, pointer: Any, place: Any, value: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            where = _address(context, builder, args[0], args[1], memory, vec.lanes)
            value = args[2]
            if memory.bitwidth < vec.element.bitwidth:
                value = builder.trunc(value, ir.VectorType(ir_element(memory), vec.lanes))
            builder.store(value, where, align=_size(memory))
            return context.get_dummy_value()

        return types.none(types.CPointer(memory), types.int64, vec), lower

    return store


def _convert(builder: Any, value: Any, memory: Any, vec: Any) -> Any:
    wanted = ir.VectorType(ir_element(vec.element), vec.lanes)
    if memory == vec.element:
        return value
    return builder.fpext(value, wanted) if _size(vec.element) > _size(memory) else builder.fptrunc(value, wanted)


def _convert_back(builder: Any, value: Any, memory: Any, vec: Any) -> Any:
    wanted = ir.VectorType(ir_element(memory), vec.lanes)
    if memory == vec.element:
        return value
    return builder.fpext(value, wanted) if _size(memory) > _size(vec.element) else builder.fptrunc(value, wanted)


def make_transpose(vec: Any) -> Any:
    """transpose(pointer to the element): turns a block of lanes x lanes elements in place."""
    lanes, element = vec.lanes, vec.element

    @intrinsic
    def transpose(typingctx: Any, pointer: Any, place: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            rows = []
            for r in range(lanes):
                place = builder.add(args[1], ir.Constant(ir.IntType(64), r * lanes))
                rows.append(
                    builder.load(_address(context, builder, args[0], place, element, lanes), align=_size(element))
                )
            step = 1
            while step < lanes:  # exchange blocks of `step` across the diagonal
                low = [i if not i & step else lanes + (i ^ step) for i in range(lanes)]
                high = [i | step if not i & step else lanes + i for i in range(lanes)]
                for r in range(lanes):
                    if not r & step:
                        a, b = rows[r], rows[r | step]
                        rows[r] = builder.shuffle_vector(a, b, _mask(low))
                        rows[r | step] = builder.shuffle_vector(a, b, _mask(high))
                step *= 2
            for r in range(lanes):
                place = builder.add(args[1], ir.Constant(ir.IntType(64), r * lanes))
                builder.store(rows[r], _address(context, builder, args[0], place, element, lanes), align=_size(element))
            return context.get_dummy_value()

        return types.none(types.CPointer(element), types.int64), lower

    return transpose


def _mask(places: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)


# Lanes


def make_splat(vec: Any) -> Any:
    """splat(x): x in every lane."""

    @intrinsic
    def splat(typingctx: Any, value: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            one = builder.insert_element(
                ir.Constant(ir.VectorType(ir_element(vec.element), vec.lanes), ir.Undefined),
                args[0],
                ir.Constant(ir.IntType(32), 0),
            )
            return builder.shuffle_vector(one, one, _mask([0] * vec.lanes))

        return vec(vec.element), lower

    return splat


def make_broadcast(vec: Any, lane: int) -> Any:
    """broadcast(x): one lane of x in every lane."""

    @intrinsic
    def broadcast(typingctx: Any, x: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.shuffle_vector(args[0], args[0], _mask([lane] * vec.lanes))

        return vec(vec), lower

    return broadcast


def make_iota(vec: Any) -> Any:
    """iota(): 0, 1, 2, ..."""

    @intrinsic
    def iota(typingctx: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return ir.Constant(ir.VectorType(ir_element(vec.element), vec.lanes), list(range(vec.lanes)))

        return vec(), lower

    return iota


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once where the machine can."""
    if not (is_float(a) and a == b == c):
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vec = sig.return_type
        kind = context.get_value_type(vec)
        name = f"llvm.fmuladd.v{vec.lanes}f{vec.element.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return builder.call(function, args)

    return a(a, b, c), lower


@intrinsic
def select(typingctx: Any, mask: Any, yes: Any, no: Any) -> Any:
    """`yes` where the mask is set, else `no`."""
    if not (isinstance(mask, Vec) and mask.element == types.boolean and isinstance(yes, Vec) and yes == no):
        return None
    return yes(mask, yes, no), lambda context, builder, sig, args: builder.select(*args)


@intrinsic
def any_lane(typingctx: Any, mask: Any) -> Any:
    """Whether any lane of a mask is set."""
    if not (isinstance(mask, Vec) and mask.element == types.boolean):
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = ir.IntType(sig.args[0].lanes)
        return builder.icmp_unsigned("!=", builder.bitcast(args[0], bits), ir.Constant(bits, 0))

    return types.boolean(mask), lower


@intrinsic
def as_bits(typingctx: Any, x: Any) -> Any:
    """The bits of floating-point lanes as integers."""
    if not is_float(x):
        return None
    found = int_of(x)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(sig.return_type))

    return found(x), lower


def make_from_bits(vec: Any) -> Any:
    """from_bits(integers): lanes with these bits."""

    @intrinsic
    def from_bits(typingctx: Any, x: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(vec))

        return vec(int_of(vec)), lower

    return from_bits


@intrinsic
def extract(typingctx: Any, x: Any, lane: Any) -> Any:
    """One lane."""
    if not isinstance(x, Vec):
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(*args)

    return x.element(x, types.int64), lower


def make_fold(vec: Any, function: str) -> Any:
    """fold(x): the sum ("add") or the largest ("max") of all lanes."""

    @intrinsic
    def fold(typingctx: Any, x: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            (value,), width = args, vec.lanes
            while width > 1:
                width //= 2
                turned = [(i + width) % vec.lanes for i in range(vec.lanes)]
                other = builder.shuffle_vector(value, value, _mask(turned))
                if function == "add":
                    value = builder.fadd(value, other)
                else:
                    value = builder.select(builder.fcmp_ordered(">", value, other), value, other)
            return builder.extract_element(value, ir.Constant(ir.IntType(64), 0))

        return vec.element(vec), lower

    return fold


# Pointers and threads


def make_pointer(element: Any) -> Any:
    """pointer(address): an integer as a pointer to `element`."""

    @intrinsic
    def pointer(typingctx: Any, address: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

        return types.CPointer(element)(types.int64), lower

    return pointer


@intrinsic
def take_ticket(typingctx: Any, counter: Any) -> Any:
    """The value of an int64 counter that threads share, and one added to it."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", args[0], ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(types.CPointer(types.int64)), lower
