"""A kernel's identity as text: equal text means equal machine code.

Dataclass equality will not do: 0.0 == -0.0, 1 == True and comparing two expression DAGs may take
exponential time.  Here every distinct expression is one numbered line.  Imports: kernel, types.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from graphc.kernel import Expr, Kernel
from graphc.types import DType


class _Numbering:
    """Numbers expressions by content, operands first, without recursing on their depth."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self._seen: dict[int, int] = {}

    def number(self, expr: Expr) -> int:
        stack = [expr]
        while stack:
            e = stack[-1]
            if id(e) in self._seen:
                stack.pop()
                continue
            waiting = [a for a in e.args if id(a) not in self._seen]
            if waiting:
                stack.extend(waiting)
                continue
            operands = " ".join(str(self._seen[id(a)]) for a in e.args)
            line = f"{e.op} {operands} {self.text(e.value)} {e.dtype.name}"
            self._seen[id(e)] = self.lines.setdefault(line, len(self.lines))
            stack.pop()
        return self._seen[id(expr)]

    def text(self, part: Any) -> str:
        """The text of a part of a kernel, naming expressions by their numbers."""
        if isinstance(part, Expr):
            return f"%{self.number(part)}"
        if isinstance(part, tuple):
            return f"({' '.join(self.text(x) for x in part)})"
        if hasattr(part, "__dataclass_fields__") and not isinstance(part, DType):
            inside = " ".join(self.text(getattr(part, f.name)) for f in fields(part))
            return f"{type(part).__name__}({inside})"
        return repr(part)


def signature(kernel: Kernel) -> str:
    """The kernel as text; two kernels with the same text compile to the same code."""
    numbering = _Numbering()
    body = numbering.text(kernel)
    return "\n".join([body, *numbering.lines])
