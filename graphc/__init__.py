"""graphc: a static graph compiler.

    import graphc as gx

Declare placeholders and variables, build a graph with NumPy-named functions, differentiate it with
`gx.gradients`, and run it in a `gx.Session` or as a compiled `gx.function`.  Activations, layers
and losses are in `gx.nn`, optimizers and checkpoints in `gx.train`, files in `gx.export`.
"""

from __future__ import annotations

import contextlib as _contextlib
import importlib as _importlib
from collections.abc import Iterable as _Iterable
from typing import Any as _Any

from graphc import errors
from graphc.custom import (
    custom_gradient,
    disconnected_grad,
    grad_clip,
    grad_scale,
    gradient_override,
    zero_grad,
)
from graphc.derivatives import grad, hessian, jacobian, subgraph_grad
from graphc.errors import GraphcError
from graphc.function import Function, function
from graphc.function_inputs import In, Out
from graphc.graph import Graph, GraphKeys, get_default_graph, reset_default_graph
from graphc.node import Node, Tensor
from graphc.ops import random
from graphc.ops.arithmetic import (
    abs,
    add,
    astype,
    cast,
    divide,
    equal,
    floor_divide,
    fmod,
    greater,
    greater_equal,
    less,
    less_equal,
    maximum,
    minimum,
    multiply,
    negative,
    not_equal,
    remainder,
    sign,
    subtract,
    where,
)
from graphc.ops.arrange import (
    atleast_1d,
    atleast_2d,
    atleast_3d,
    broadcast_arrays,
    column_stack,
    dstack,
    fliplr,
    flipud,
    hstack,
    moveaxis,
    ravel,
    rot90,
    swapaxes,
    vstack,
)
from graphc.ops.arrange import slice_ as slice
from graphc.ops.check import (
    assert_true,
    check_numerics,
)
from graphc.ops.create import (
    arange,
    eye,
    full,
    full_like,
    linspace,
    meshgrid,
    one_hot,
    ones,
    ones_like,
    tril,
    triu,
    zeros,
    zeros_like,
)
from graphc.ops.define import (
    constant,
)
from graphc.ops.diagonal import diag, diagonal, matrix_diag, trace
from graphc.ops.einsum import dot, einsum, inner, outer, tensordot, vdot
from graphc.ops.host import py_op
from graphc.ops.index import (
    flip,
    roll,
)
from graphc.ops.indexed import gather, take, take_along_axis
from graphc.ops.join import (
    concat,
    pad,
    repeat,
    split,
    stack,
    tile,
    unstack,
)
from graphc.ops.linalg import (
    matmul,
)
from graphc.ops.logic import (
    allclose,
    bitwise_and,
    bitwise_not,
    bitwise_or,
    bitwise_xor,
    clip,
    clip_by_value,
    invert,
    isclose,
    isfinite,
    isinf,
    isnan,
    left_shift,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    right_shift,
)
from graphc.ops.math import (
    acos,
    acosh,
    arccos,
    arccosh,
    arcsin,
    arcsinh,
    arctan,
    arctan2,
    arctanh,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    cbrt,
    ceil,
    cos,
    cosh,
    erf,
    erfc,
    exp,
    exp2,
    expm1,
    floor,
    hypot,
    log,
    log1p,
    log2,
    log10,
    logaddexp,
    pow,
    power,
    reciprocal,
    round,
    rsqrt,
    sin,
    sinh,
    sqrt,
    square,
    squared_difference,
    tan,
    tanh,
    trunc,
)
from graphc.ops.nan import (
    fmax,
    fmin,
    isneginf,
    isposinf,
    nan_to_num,
    nanmax,
    nanmean,
    nanmin,
    nansum,
)
from graphc.ops.numeric import (
    add_n,
    average,
    corrcoef,
    count_nonzero,
    cov,
    cross,
    deg2rad,
    degrees,
    diff,
    digitize,
    heaviside,
    kron,
    logaddexp2,
    logit,
    ptp,
    rad2deg,
    radians,
    searchsorted,
    sequence_mask,
    trapezoid,
)
from graphc.ops.reduce import (
    all,
    any,
    argmax,
    argmin,
    max,
    mean,
    min,
    prod,
    sum,
)
from graphc.ops.scatter import (
    gather_nd,
    put_along_axis,
    scatter_add,
    scatter_nd,
    scatter_update,
)
from graphc.ops.shape import broadcast_to, expand_dims, reshape, squeeze, transpose
from graphc.ops.sizes import shape, size
from graphc.ops.state import (
    Variable,
    assign,
    assign_add,
    assign_sub,
    ensure_shape,
    global_variables,
    global_variables_initializer,
    group,
    identity,
    no_op,
    placeholder,
    placeholder_with_default,
    stop_gradient,
    trainable_variables,
    variables_initializer,
)
from graphc.ops.statistics import (
    cumprod,
    cumsum,
    logsumexp,
    moments,
    norm,
    std,
    var,
)
from graphc.passes.differentiate import gradients, hessian_vector_product, jvp, vjp
from graphc.session import RunOptions, Session, get_default_session
from graphc.shared import shared
from graphc.statistics import stats
from graphc.threads import thread_limits
from graphc.trace import Roofline, Trace
from graphc.types import (
    DType,
    as_dtype,
    bool_,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from graphc.version import __version__

set_random_seed = random.set_random_seed


def name_scope(name: str | None) -> _contextlib.AbstractContextManager[str]:
    """Prefix the names of nodes made inside with `name/`, in the default graph; None: no prefix."""
    return get_default_graph().name_scope(name)


def control_dependencies(
    nodes: _Iterable[Node | Tensor] | None,
) -> _contextlib.AbstractContextManager[None]:
    """Nodes made inside run after `nodes`, in the default graph."""
    return get_default_graph().control_dependencies(nodes)


def device(name: str | None) -> _contextlib.AbstractContextManager[None]:
    """Nodes made inside are for this device, in the default graph: '/gpu:0', '/cpu:0', ...

    A session that was given no device runs a program as a whole on a GPU that any of its nodes is
    for.
    """
    return get_default_graph().device(name)


def add_to_collection(key: str, value: _Any) -> None:
    """Add a value to a collection of the default graph."""
    get_default_graph().add_to_collection(key, value)


def get_collection(key: str, scope: str | None = None) -> list[_Any]:
    """The values of a collection of the default graph."""
    return get_default_graph().get_collection(key, scope)


_LAZY_MODULES = ("export", "nn", "train")
_LAZY_NAMES = {
    "DeviceArray": "graphc.device_array",
    "Placement": "graphc.placement",
    "check": "graphc.debug",
    "explain": "graphc.explanation",
    "freeze": "graphc.export",
    "load_graph": "graphc.export",
    "measure_roofline": "graphc.backends.llvm.roofline",
    "prune": "graphc.export",
    "save_graph": "graphc.export",
}


def __getattr__(name: str) -> _Any:
    """Sub-packages are imported when they are first used, so that `import graphc` stays quick."""
    if name in _LAZY_MODULES:
        return _importlib.import_module(f"graphc.{name}")
    if name in _LAZY_NAMES:
        return getattr(_importlib.import_module(_LAZY_NAMES[name]), name)
    raise AttributeError(f"module 'graphc' has no attribute {name!r}")
