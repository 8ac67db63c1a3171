"""Every scalar operation of the kernel IR, compiled for this machine and compared with NumPy."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from llvmlite import binding as llvm

from graphc.backends.codegen.scalar import MAX_ULP, emit_scalar
from graphc.backends.codegen.text import LANES, FunctionText, memory_type, vector
from graphc.kernel import SCALAR_OPS
from graphc.types import DTYPES, FLOATS, INTEGERS, DType, bool_, float32, float64

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

BITWISE = ("and", "or", "xor")
COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


# ---- compiling one operation as an elementwise kernel


def map_text(op: str, operand: DType, result: DType) -> str:
    """LLVM text of a kernel applying `op` to LANES elements at a time."""
    arity = SCALAR_OPS[op][0]
    inputs = [operand] * arity
    if op == "select":
        inputs[0] = bool_
    f = FunctionText("kernel")
    f.open_kernel(arity + 1, ())
    loop = f.open_loop("%b0", "%b1", LANES)
    args = []
    for i, dtype in enumerate(inputs):
        at = f.offset(f.bases[i], f.mul(loop.index, dtype.itemsize))
        x = f.value(f"load {vector(memory_type(dtype))}, ptr {at}, align 1")
        if dtype.is_bool:
            x = f.value(f"trunc {vector('i8')} {x} to {vector('i1')}")
        args.append(x)
    y = emit_scalar(f, op, args, operand, result)
    if result.is_bool:
        y = f.value(f"zext {vector('i1')} {y} to {vector('i8')}")
    at = f.offset(f.bases[arity], f.mul(loop.index, result.itemsize))
    f.emit(f"store {vector(memory_type(result))} {y}, ptr {at}, align 1")
    f.close_loop(loop)
    f.close_kernel()
    return "\n".join(f.declarations.values()) + "\n" + str(f)


def host_machine() -> Any:
    """A new one each time: an engine owns the machine it is given."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )


@functools.cache
def compiled(op: str, operand: DType, result: DType) -> tuple[Any, Any]:
    """(engine, function): the engine owns the code."""
    module = llvm.parse_assembly(map_text(op, operand, result))
    module.verify()
    engine = llvm.create_mcjit_compiler(module, host_machine())
    engine.finalize_object()
    signature = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
    )
    return engine, signature(engine.get_function_address("kernel"))


def apply(op: str, *arrays: Array, result: DType | None = None) -> Array:
    """`op` on equally long arrays; the lanes of an incomplete last vector hold zeros."""
    operand = next(d for d in DTYPES if d.numpy == arrays[-1].dtype)
    if result is None:
        result = bool_ if SCALAR_OPS[op][1] == "bool" else operand
    length = len(arrays[0])
    padded = -(-length // LANES) * LANES
    buffers = [np.zeros(padded, a.dtype) for a in arrays]
    for buffer, a in zip(buffers, arrays, strict=True):
        buffer[:length] = a
    out = np.zeros(padded, result.numpy)
    pointers = (ctypes.c_void_p * (len(arrays) + 1))(*(b.ctypes.data for b in [*buffers, out]))
    _, function = compiled(op, operand, result)
    function(pointers, None, 0, padded)
    return out[:length]


def assert_same(got: Array, want: Array, *operands: Array, signs: bool = True) -> None:
    """Equal values; NaN equals NaN, and zeros agree in sign unless told otherwise."""
    assert got.dtype == want.dtype
    if got.dtype.kind == "f":
        same = (got == want) & ((np.signbit(got) == np.signbit(want)) | (not signs))
        same |= np.isnan(got) & np.isnan(want)
    else:
        same = got == want
    wrong = np.flatnonzero(~same)[:4]
    assert not len(wrong), [(*(o[i] for o in operands), got[i], want[i]) for i in wrong]


# ---- operands


def edges(dtype: DType) -> Array:
    if dtype.is_bool:
        return np.array([False, True])
    if dtype.is_integer:
        info = np.iinfo(dtype.numpy)
        middle = -1 if dtype.is_signed else 3
        return np.array(
            [info.min, info.min + 1, middle, 0, 1, 2, 7, info.max - 1, info.max], dtype.numpy
        )
    tiny = np.finfo(dtype.numpy)
    small = [0.0, 0.5, 1.0, 1.5, 2.5, 5.3, 254.9, 2.0**31, 2.0**63, 1e30, tiny.tiny, np.inf]
    small += [tiny.max, tiny.smallest_subnormal, np.nan]
    return np.array(small + [-x for x in small], dtype.numpy)


def pairs(dtype: DType) -> tuple[Array, Array]:
    """All pairs of edges and random operands; the length is no multiple of LANES."""
    rng = np.random.default_rng(7)
    e = edges(dtype)
    a, b = np.repeat(e, len(e)), np.tile(e, len(e))
    if dtype.is_bool:
        return np.concatenate([a, a[:1]]), np.concatenate([b, b[:1]])
    if dtype.is_integer:
        info = np.iinfo(dtype.numpy)
        x, y = rng.integers(info.min, info.max, (2, 500), dtype.numpy)
        y[::2] = rng.integers(1, 10, 250)
    else:
        spread = 20.0 if dtype is float32 else 150.0
        x, y = rng.normal(size=(2, 500)) * [[100.0], [3.0]]
        x[::2] = np.exp(rng.normal(size=250) * spread)
        y[::2] = -np.exp(rng.normal(size=250) * spread)
    a, b = np.concatenate([a, x, x[:1]]), np.concatenate([b, y, y[:1]])
    extra = 1 if len(a) % LANES == 0 else 0
    return a[extra:].astype(dtype.numpy), b[extra:].astype(dtype.numpy)


# ---- exact operations

BINARY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "floordiv": np.floor_divide,
    "mod": np.remainder,
    "fmod": np.fmod,
    "max": np.maximum,
    "min": np.minimum,
}
FLOAT_UNARY: dict[str, Callable[..., Any]] = {
    "neg": np.negative,
    "abs": np.abs,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "trunc": np.trunc,
    "sqrt": np.sqrt,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
}


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
@pytest.mark.parametrize("op", BINARY)
def test_binary(op: str, dtype: DType) -> None:
    a, b = pairs(dtype)
    got = apply(op, a, b)  # zero divisors must not trap; their integer result is unspecified
    want = BINARY[op](a, b)
    if dtype.is_integer and op in ("floordiv", "mod", "fmod"):
        want[b == 0] = got[b == 0]
    assert_same(got, want, a, b, signs=op not in ("max", "min"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", COMPARISONS)
def test_comparison(op: str, dtype: DType) -> None:
    a, b = pairs(dtype)
    assert_same(apply(op, a, b), COMPARISONS[op](a, b), a, b)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_float_only(dtype: DType) -> None:
    a, b = pairs(dtype)
    assert_same(apply("div", a, b), a / b, a, b)
    assert_same(apply("copysign", a, b), np.copysign(a, b), a, b)
    for op, reference in FLOAT_UNARY.items():
        assert_same(apply(op, a), reference(a), a)


def test_fma_rounds_once() -> None:
    x = np.array([1 + 2.0**-12] * 17, np.float32)
    exact = x.astype(np.float64) ** 2 - 1
    assert_same(apply("fma", x, x, -np.ones_like(x)), exact.astype(np.float32), x)
    assert apply("fma", x, x, -np.ones_like(x))[0] != x[0] * x[0] - np.float32(1)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integer_only(dtype: DType) -> None:
    a, b = pairs(dtype)
    assert_same(apply("neg", a), np.negative(a), a)
    assert_same(apply("abs", a), np.abs(a), a)
    assert_same(apply("not", a), np.invert(a), a)
    for op, reference in zip(BITWISE, (np.bitwise_and, np.bitwise_or, np.bitwise_xor), strict=True):
        assert_same(apply(op, a, b), reference(a, b), a, b)
    count = (np.arange(len(a)) % dtype.bits).astype(dtype.numpy)
    assert_same(apply("shl", a, count), np.left_shift(a, count), a, count)
    assert_same(apply("shr", a, count), np.right_shift(a, count), a, count)
    exponent = (np.arange(len(a)) % 70).astype(dtype.numpy)
    assert_same(apply("pow", a, exponent), np.power(a, exponent), a, exponent)


def test_high_product() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2**32, (2, 83), dtype=np.uint64)
    got = apply("mulhi", a.astype(np.uint32), b.astype(np.uint32))
    assert_same(got, ((a * b) >> np.uint64(32)).astype(np.uint32), a, b)


def test_bool_logic() -> None:
    a, b = pairs(bool_)
    for op, reference in (
        ("and", np.logical_and),
        ("or", np.logical_or),
        ("xor", np.logical_xor),
        ("add", np.add),
        ("mul", np.multiply),
        ("max", np.maximum),
        ("min", np.minimum),
    ):
        assert_same(apply(op, a, b), reference(a, b), a, b)
    assert_same(apply("not", a), ~a, a)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_select(dtype: DType) -> None:
    a, b = pairs(dtype)
    mask = np.arange(len(a)) % 3 == 0
    assert_same(apply("select", mask, a, b), np.where(mask, a, b), a, b)


def saturated(x: Array, target: DType) -> Array:
    """What 'cast' promises where C leaves the value undefined."""
    if target.is_integer and x.dtype.kind == "f":
        info = np.iinfo(target.numpy)
        values = np.where(np.isnan(x), 0, x).tolist()
        bounded = [int(min(max(v, info.min), info.max)) for v in values]
        return np.array(bounded, target.numpy)
    return x.astype(target.numpy)


@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_cast(source: DType) -> None:
    a, _ = pairs(source)
    for target in DTYPES:
        assert_same(apply("cast", a, result=target), saturated(a, target), a)


@pytest.mark.parametrize("source", [d for d in DTYPES if d.bits in (32, 64)], ids=str)
def test_bitcast(source: DType) -> None:
    a, _ = pairs(source)
    for target in DTYPES:
        if target.bits == source.bits:
            got = apply("bitcast", a, result=target)
            assert got.tobytes() == a.view(target.numpy).tobytes()


@pytest.mark.parametrize("dtype", [float32, INTEGERS[0], bool_], ids=str)
def test_undefined_operation(dtype: DType) -> None:
    op = "shl" if dtype.is_float else "exp"
    with pytest.raises(ValueError, match=f"scalar operation '{op}' is not defined for"):
        map_text(op, dtype, dtype)


# ---- transcendental functions

NUMPY_NAMES = {
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "atan2": "arctan2",
    "asinh": "arcsinh",
    "acosh": "arccosh",
    "atanh": "arctanh",
    "pow": "power",
}


def _erf(x: float) -> tuple[Decimal, Decimal]:
    """erf and erfc by the Taylor series, with digits to spare for erfc(26) = 1e-296."""
    with localcontext() as context:
        context.prec = 40 + int(0.9 * x * x)
        z = Decimal(x)
        total = term = z
        k = 0
        while term and abs(term) > Decimal(10) ** (-context.prec) * abs(total):
            k += 1
            term = -term * z * z / k
            total += term / (2 * k + 1)
        value = total * 2 / Decimal(_PI).sqrt()
        return value, 1 - value


def _pi(digits: int) -> str:
    """Machin's formula in integers."""
    unit = 10 ** (digits + 10)

    def arctan_inverse(n: int) -> int:
        power = total = unit // n
        k = 1
        while power:
            power //= -n * n
            k += 2
            total += power // k
        return int(total)

    digits_text = str(4 * (4 * arctan_inverse(5) - arctan_inverse(239)))
    return "3." + digits_text[1 : digits + 1]


_PI = _pi(700)


def reference(op: str, operands: list[Array]) -> Array:
    """The function of the given numbers with about 64 bits."""
    wide = [x.astype(np.longdouble) for x in operands]
    if op in ("erf", "erfc"):
        exact = [_erf(float(x))[op == "erfc"] for x in operands[0]]
        high = np.array([float(v) for v in exact])
        rest = [float(v - Decimal(h)) for v, h in zip(exact, high.tolist(), strict=True)]
        return np.asarray(high.astype(np.longdouble) + np.array(rest))
    if op == "sigmoid":
        power = np.exp(-np.abs(wide[0]))
        return np.asarray(np.where(wide[0] < 0, power, np.longdouble(1)) / (1 + power))
    return np.asarray(getattr(np, NUMPY_NAMES.get(op, op))(*wide))


def ulps(got: Array, want: Array) -> Array:
    """Distance in units in the last place of the result type; infinite where the kind differs."""
    rounded = want.astype(got.dtype)
    unit = np.spacing(np.abs(rounded)).astype(np.longdouble)
    error = np.abs(got.astype(np.longdouble) - want) / unit
    error[got == rounded] = np.minimum(error[got == rounded], 0.5)
    same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    error[same & ~np.isfinite(rounded)] = 0
    error[np.isnan(error)] = np.inf
    signs = (rounded == 0) & (got == 0) & (np.signbit(got) != np.signbit(rounded))
    error[signs] = np.inf
    return np.asarray(error)


def samples(op: str, dtype: DType) -> Array:
    """Numbers of every magnitude, and densely where functions change their method."""
    rng = np.random.default_rng(11)
    n = 60 if op in ("erf", "erfc") else 2500
    if op in ("erf", "erfc"):
        x = [rng.uniform(-1.1, 1.1, 3 * n), rng.uniform(-6, 6, 2 * n), rng.uniform(5, 26, n)]
    else:
        limit = 110.0 if dtype is float32 else 760.0
        random_bits = np.frombuffer(rng.bytes(2 * n * dtype.itemsize), dtype.numpy)
        x = [
            random_bits,
            rng.uniform(-1, 1, n),
            rng.uniform(-4, 4, n),
            rng.uniform(-limit, limit, n),
            1 + rng.normal(size=n) * 1e-3,
            np.exp(rng.uniform(-8, 8, n)),
            edges(dtype),
        ]
    return np.concatenate([np.asarray(part, dtype.numpy) for part in x])


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs an 80-bit long double")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("op", MAX_ULP)
def test_accuracy(op: str, dtype: DType) -> None:
    x = samples(op, dtype)
    operands = [x]
    if SCALAR_OPS[op][0] == 2:
        operands.append(np.random.default_rng(5).permutation(x))
        operands = [np.concatenate([v, np.abs(v)]) for v in operands]
    error = ulps(apply(op, *operands), reference(op, operands))
    worst = int(np.argmax(error))
    bound = MAX_ULP[op][dtype is float64]
    assert error[worst] <= bound, (float(error[worst]), [float(v[worst]) for v in operands])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_error_function_limits(dtype: DType) -> None:
    inf = np.inf
    x = np.array([0.0, -0.0, inf, -inf, np.nan, 30.0, -30.0], dtype.numpy)
    erf = np.array([0.0, -0.0, 1.0, -1.0, np.nan, 1.0, -1.0], dtype.numpy)
    erfc = np.array([1.0, 1.0, 0.0, 2.0, np.nan, 0.0, 2.0], dtype.numpy)
    assert_same(apply("erf", x), erf, x)
    assert_same(apply("erfc", x), erfc, x)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_power_special_cases(dtype: DType) -> None:
    special = np.array([0.0, 1.0, 2.0, 3.0, 0.5, 1e10, np.inf, np.nan, 7.0, 2.0**60], dtype.numpy)
    special = np.concatenate([special, -special])
    a, b = np.repeat(special, len(special)), np.tile(special, len(special))
    got, want = apply("pow", a, b), np.power(a, b)
    exact = ~np.isfinite(want) | (want == 0) | (np.abs(want) == 1)
    assert_same(got[exact], want[exact], a[exact], b[exact])
    assert (np.sign(got) == np.sign(want))[~exact].all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_arctangent_of_quadrants(dtype: DType) -> None:
    special = np.array([0.0, 1.0, np.inf, np.nan, 1e-30, 1e30], dtype.numpy)
    special = np.concatenate([special, -special])
    y, x = np.repeat(special, len(special)), np.tile(special, len(special))
    error = ulps(apply("atan2", y, x), reference("atan2", [y, x]))
    assert error.max() <= MAX_ULP["atan2"][dtype is float64]


RARE = {
    "exp": [100.0, -100.0, -1e30, np.inf, -np.inf, np.nan],
    "log": [0.0, -0.0, -1.0, 1e-40, np.inf, np.nan],
    "sigmoid": [17.0, -17.0, 100.0, -90.0, -1e30, np.inf, -np.inf, np.nan],
}
"""Numbers that a function of float32 leaves to its rare path."""


@pytest.mark.parametrize("op", RARE)
def test_rare_numbers_change_no_others(op: str) -> None:
    """A number's bits do not depend on which path the other lanes of its vector ask for."""
    rng = np.random.default_rng(3)
    x = rng.uniform(-16.25, 16.25, 1000 * LANES).astype(np.float32)
    x = np.abs(x) if op == "log" else x
    alone = apply(op, x)
    rare = np.array(RARE[op], np.float32)
    mixed = x.copy()
    places = np.arange(len(mixed)) % LANES == np.repeat(rng.integers(0, LANES, 1000), LANES)
    mixed[places] = rng.choice(rare, 1000)
    got = apply(op, mixed)
    assert got[~places].tobytes() == alone[~places].tobytes()
    together = apply(op, np.repeat(rare, LANES))
    for i, value in enumerate(rare):
        here = got[places & ((mixed == value) | (np.isnan(mixed) & np.isnan(value)))]
        assert_same(here, np.full_like(here, together[i * LANES]))


# ---- the code

FEATURES = {
    "avx512": "+avx512f,+avx512vl,+avx512dq,+avx512bw,+avx2,+fma",
    "avx2": "+avx2,+fma",
}


@functools.cache
def x86_machine(name: str) -> Any:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
    return target.create_target_machine(
        cpu="x86-64", features=FEATURES[name], opt=2, reloc="pic", codemodel="small"
    )


@pytest.mark.parametrize("machine", FEATURES)
@pytest.mark.parametrize("op", [*MAX_ULP, "fmod", "mod", "floordiv", "round", "fma"])
def test_no_calls(op: str, machine: str) -> None:
    """No operation falls back to libm, one lane at a time."""
    for dtype in FLOATS:
        module = llvm.parse_assembly(map_text(op, dtype, dtype))
        assembly = x86_machine(machine).emit_assembly(module)
        assert "zmm" in assembly or "ymm" in assembly
        called = set(re.findall(r"\b(?:callq?|jmp)\s+(?!\.L)(\S+)", assembly))
        assert called <= {f"graphc.any.{op}.float", f"graphc.any.{op}.float@PLT"}


def test_every_operation_has_a_check() -> None:
    checked = {*MAX_ULP, *BINARY, *COMPARISONS, *FLOAT_UNARY, *BITWISE}
    checked |= {"div", "copysign", "fma", "not", "shl", "shr", "mulhi"}
    checked |= {"select", "cast", "bitcast"}
    assert checked == set(SCALAR_OPS)
