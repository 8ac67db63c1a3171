"""Every scalar operation of the kernel IR as LLVM text, on vectors or on scalars.

`emit_scalar` dispatches on the operand dtype.  Nothing here calls libm: what LLVM has no vector
instruction for is written out in `math32`, `math64` and `remainder`.
Imports: integers, lanes, math32, math64, remainder, shared_code, text, types.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.backends.codegen.integers import emit_integer
from graphc.backends.codegen.lanes import Lanes
from graphc.backends.codegen.math32 import FUNCTIONS32
from graphc.backends.codegen.math64 import FUNCTIONS64
from graphc.backends.codegen.remainder import floor_divide, remainder, truncated_remainder
from graphc.backends.codegen.shared_code import call_shared
from graphc.backends.codegen.text import FunctionText, scalar_type
from graphc.types import DType

_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}

_INTRINSICS = {
    "fma": "fma",
    "abs": "fabs",
    "max": "maximum",
    "min": "minimum",
    "floor": "floor",
    "ceil": "ceil",
    "round": "roundeven",
    "trunc": "trunc",
    "copysign": "copysign",
    "sqrt": "sqrt",
}

_COMPARISONS = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}

_REMAINDERS = {"floordiv": floor_divide, "mod": remainder, "fmod": truncated_remainder}

_BOOL_AS_BITS = {"add": "or", "max": "or", "mul": "and", "min": "and"}


LONG = frozenset(("sin", "cos", "tan", "pow", "floordiv", "mod", "fmod"))
"""Float operations that take LLVM 10 to 20 ms for every copy."""

INLINE_USES = 2
"""A function writes a long operation out this often, which runs a fifth faster than calling it;
further uses call the module's one shared copy.  The bits are the same."""


# function -> the largest error in units in the last place, (float32, float64)
MAX_ULP: dict[str, tuple[float, float]] = {
    "exp": (1.0, 0.8),
    "expm1": (0.9, 1.1),
    "exp2": (0.8, 0.7),
    "log": (0.85, 0.51),
    "log1p": (1.45, 0.8),
    "log2": (1.0, 0.51),
    "log10": (1.0, 0.51),
    "sin": (0.9, 0.8),
    "cos": (0.9, 0.8),
    "tan": (1.25, 0.95),
    "asin": (0.7, 0.7),
    "acos": (0.65, 0.65),
    "atan": (1.3, 1.25),
    "atan2": (1.3, 1.25),
    "sinh": (0.8, 0.85),
    "cosh": (0.9, 0.9),
    "tanh": (1.2, 1.5),
    "asinh": (0.51, 1.0),
    "acosh": (0.51, 0.51),
    "atanh": (0.51, 0.51),
    "erf": (1.05, 1.1),
    "erfc": (0.51, 1.8),
    "cbrt": (0.51, 0.51),
    "pow": (0.51, 0.7),
    "sigmoid": (1.8, 0.8),
}


def emit_scalar(
    f: FunctionText, op: str, args: Sequence[str], operand: DType, result: DType
) -> str:
    """The value of one operation of SCALAR_OPS, lane by lane.

    `operand` is the dtype of the operands: for 'select' of the two values (the first argument is
    the condition), for 'cast' and 'bitcast' of the source.  Integer division by zero yields an
    unspecified number but never traps.  Raises ValueError for an operation the dtype lacks.
    """
    if op == "select":
        t = f.vector(scalar_type(operand))
        mask, yes, no = args
        return f.value(f"select {f.vector('i1')} {mask}, {t} {yes}, {t} {no}")
    if op == "cast":
        return _cast(f, args[0], operand, result)
    if op == "bitcast":
        source, target = scalar_type(operand), scalar_type(result)
        if source == target:
            return args[0]
        return f.value(f"bitcast {f.vector(source)} {args[0]} to {f.vector(target)}")
    if operand.is_float:
        return _float(f, op, args, scalar_type(operand))
    if operand.is_bool:
        op = _BOOL_AS_BITS.get(op, op)
    return emit_integer(f, op, args, scalar_type(operand), operand.is_signed)


def _float(f: FunctionText, op: str, args: Sequence[str], scalar: str) -> str:
    if op in LONG and f.lanes > 1:  # a GPU keeps what a call must save in memory
        uses = f.uses[op, scalar] = f.uses.get((op, scalar), 0) + 1
        if uses > INLINE_USES:
            return call_shared(
                f, op, scalar, args, lambda shared, xs: _float_here(shared, op, xs, scalar)
            )
    return _float_here(f, op, args, scalar)


def _float_here(f: FunctionText, op: str, args: Sequence[str], scalar: str) -> str:
    lanes = Lanes(f, scalar)
    if op in _BINARY:
        return f.value(f"{_BINARY[op]} {f.vector(scalar)} {args[0]}, {args[1]}")
    if op in _INTRINSICS:
        return lanes.intrinsic(_INTRINSICS[op], *args)
    if op in _COMPARISONS:
        return lanes.compare(_COMPARISONS[op], args[0], args[1])
    if op in _REMAINDERS:
        return _REMAINDERS[op](lanes, args[0], args[1])
    if op == "neg":
        return lanes.neg(args[0])
    if op == "isnan":
        return lanes.compare("uno", args[0], args[0])
    if op == "isinf":
        return lanes.compare("oeq", lanes.abs(args[0]), float("inf"))
    if op == "isfinite":
        return lanes.compare("one", lanes.abs(args[0]), float("inf"))
    functions = FUNCTIONS32 if scalar == "float" else FUNCTIONS64
    if op in functions:
        return functions[op](lanes, *args)
    raise ValueError(f"scalar operation {op!r} is not defined for floats")


def _cast(f: FunctionText, x: str, source: DType, target: DType) -> str:
    a, b = scalar_type(source), scalar_type(target)
    if a == b:
        return x
    if target.is_bool:
        test = "fcmp une" if source.is_float else "icmp ne"
        return f.value(f"{test} {f.vector(a)} {x}, zeroinitializer")
    if source.is_float and not target.is_float:
        # The saturating forms are defined for every input: NaN gives 0.
        kind = "fptosi" if target.is_signed else "fptoui"
        name = f"llvm.{kind}.sat.{f.suffix(b)}.{f.suffix(a)}"
        return f.call(f.vector(b), name, (f.vector(a), x))
    if source.is_float:
        instruction = "fpext" if target.bits > source.bits else "fptrunc"
    elif target.is_float:
        instruction = "sitofp" if source.is_signed else "uitofp"
    elif source.is_bool or target.bits > source.bits:
        instruction = "sext" if source.is_signed else "zext"
    else:
        instruction = "trunc"
    one = f.uniform(x)
    if one is not None:  # LLVM would convert lane by lane
        return f.splat(b, f.value(f"{instruction} {a} {one} to {b}"))
    return f.value(f"{instruction} {f.vector(a)} {x} to {f.vector(b)}")
