"""What a run will use, in bytes, before it runs.

Imports: plan, feeds, dims, errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphc import feeds
from graphc.arena import bytes_text
from graphc.dims import Atom, Dim, Sizes, atoms, evaluate, product
from graphc.errors import GraphTypeError
from graphc.node import Tensor
from graphc.plan import Plan, Value


@dataclass(frozen=True)
class Memory:
    """Bytes of everything a run uses.

    arena      scratch memory of one run: allocated for it or taken over from an earlier one
    kept       values of variables and constants alone, which stay between runs
    outputs    arrays made for the fetched values
    inputs     arrays fed, if none has to be converted
    variables  values the session keeps
    constants  values in the program
    Tables of the run (a few hundred bytes per step) and machine code are not counted.
    """

    arena: int
    kept: int
    outputs: int
    inputs: int
    variables: int
    constants: int

    @property
    def total(self) -> int:
        """All of them together."""
        return sum(vars(self).values())

    def __str__(self) -> str:
        rows = {**vars(self), "total": self.total}
        lines = [f"{k:10} {v:>16,} bytes  {bytes_text(v):>9}" for k, v in rows.items()]
        return "\n".join(lines) + "\n"


def memory_of(plan: Plan, sizes: Sizes) -> Memory:
    """What a plan uses at these sizes."""

    def total(values: Sequence[Value]) -> int:
        return sum(
            evaluate(product(v.type.shape or ()), sizes) * v.type.dtype.itemsize for v in values
        )

    return Memory(
        plan.arena_bytes(sizes),
        plan.kept_bytes,
        total(plan.outputs),
        total(plan.inputs),
        total(plan.variables),
        sum(c.nbytes for c in plan.constants),
    )


def named_sizes(inputs: Sequence[Tensor], given: Mapping[Any, Any]) -> dict[Atom, int]:
    """Sizes of unknown dimensions from names, dimensions, or placeholders with their shapes.

    Raises GraphTypeError for what names no unknown size of the inputs, FeedError for a shape that
    does not fit its placeholder.
    """
    shaped = [t for t in inputs if t.type.shape is not None]
    known = {a.name: a for t in shaped for d in t.dims for a in atoms(d)}
    found: dict[Atom, int] = {}
    for key, value in given.items():
        if isinstance(key, Tensor):
            found.update(feeds.bind_sizes([key], [tuple(value)]))
            continue
        names = [a.name for a in atoms(key)] if isinstance(key, Dim) else [str(key)]
        if isinstance(key, Atom):
            names = [key.name]
        if len(names) != 1 or names[0] not in known or not isinstance(value, int) or value < 0:
            listed = ", ".join(map(repr, known)) or "none"
            raise GraphTypeError(f"{key!r}: {value!r} is no size of these inputs; theirs: {listed}")
        found[known[names[0]]] = value
    return found
