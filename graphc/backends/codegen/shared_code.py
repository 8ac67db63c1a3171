"""Functions on vectors that a module has one copy of, and branches to them that are rarely taken.

Imports: lanes, text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.backends.codegen.lanes import Lanes
from graphc.backends.codegen.text import KERNEL_ATTRIBUTES, FunctionText

Body = Callable[[FunctionText, Sequence[str]], str]
"""Writes a function's body, given the names of its parameters; returns its result."""


def call_shared(
    f: FunctionText,
    name: str,
    scalar: str,
    args: Sequence[str],
    body: Body,
    *,
    rarely: bool = False,
) -> str:
    """Call the module's one copy of a function, writing it first if it is not there.

    What LLVM keeps in registers stays there on the ways that do not lead to a call made `rarely`.
    """
    t = f.vector(scalar)
    name = f"graphc.{name}.{scalar}"
    if name not in f.declarations:
        shared = FunctionText(name, f.lanes)
        parameters = [f"%x{i}" for i in range(len(args))]
        listed = ", ".join(f"{t} {p}" for p in parameters)
        shared.lines.append(f"define internal {t} @{name}({listed}) {KERNEL_ATTRIBUTES} {{")
        shared.lines.append("entry:")
        result = body(shared, parameters)
        shared.emit(f"ret {t} {result}")
        shared.lines.append("}")
        f.declarations.update(shared.declarations)
        f.declarations[name] = str(shared)
    listed = ", ".join(f"{t} {a}" for a in args)
    return f.value(f"call {t} @{name}({listed}){' cold' if rarely else ''}")


def unless(
    v: Lanes,
    rare: str,
    usual: str,
    name: str,
    anywhere: Callable[[Lanes, str], str],
    x: str,
) -> str:
    """`usual`, but `anywhere(x)` for all lanes if `rare` holds in one of them.

    `anywhere` gives the same bits as `usual` in the lanes where `rare` does not hold.  A function
    of one lane computes `anywhere`: threads of a GPU would wait for each other at the branch.
    """
    f = v.f
    if f.lanes == 1:
        return anywhere(v, x)
    before, key = f.block, f.fresh("")
    f.branch_if(f.any(rare), f"rare{key}", f"done{key}")
    f.label(f"rare{key}")

    def body(shared: FunctionText, parameters: Sequence[str]) -> str:
        return anywhere(Lanes(shared, v.scalar), parameters[0])

    called = call_shared(f, f"any.{name}", v.scalar, [x], body, rarely=True)
    f.branch(f"done{key}")
    f.label(f"done{key}")
    return f.value(f"phi {v.type} [ {usual}, %{before} ], [ {called}, %rare{key} ]")
