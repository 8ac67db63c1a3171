"""What fusion makes of a program: groups, each of which becomes one kernel.

Imports: program, dims, passes.views, passes.uniform.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from graphc.dims import DimLike
from graphc.node import Node, Tensor
from graphc.passes.uniform import Uniforms
from graphc.passes.views import Views
from graphc.program import Program
from graphc.types import Shape

MAX_MEMBERS = 96
"""Members of one group: keeps live values near the number of registers, and recursion shallow."""

CHUNK = 16384
"""Elements of one chunk of a split reduction, where the back end does not want another number."""

FULL, ACC, REDUCED = "full", "acc", "reduced"


@dataclass(eq=False)
class Group:
    """What one kernel computes."""

    number: int
    kind: str  # 'loop', 'contraction' or 'nest'
    shape: Shape
    head: Node
    red: tuple[int, ...] | None = None
    split: bool = False
    members: list[Tensor] = field(default_factory=list)
    level: dict[int, str] = field(default_factory=dict)
    readers: set[int] = field(default_factory=set)

    @property
    def kept(self) -> tuple[int, ...]:
        red = self.red or ()
        return tuple(a for a in range(len(self.shape)) if a not in red)

    @property
    def kept_shape(self) -> Shape:
        return tuple(self.shape[a] for a in self.kept)


@dataclass(frozen=True, eq=False)
class Place:
    """Where in another array a value is stored: the strides of its axes there, and its start."""

    into: Tensor
    strides: tuple[DimLike, ...]
    offset: DimLike


@dataclass(eq=False)
class Fusion:
    """The partition, and what the later steps need to know about it."""

    program: Program
    groups: list[Group]
    views: Views
    uniforms: Uniforms
    group_of: dict[int, Group]
    stored: set[int]  # ids of member tensors that must be written to memory
    chunk: int = CHUNK  # elements of one chunk of a split reduction
    placed: dict[int, list[Place]] = field(default_factory=dict)  # by id: parts of other arrays
