"""A program that is cut out of the graph only when somebody needs it.

Where the cache on disk knows the plan already, nobody does: then the graph is walked once, for its
key, and no program is made.  Imports: program, node, passes.resolve_state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from graphc.node import Node, Tensor
from graphc.passes.resolve_state import resolve_state
from graphc.program import Program


class LateProgram:
    """What a session is to run: these fetches and targets, given these feeds."""

    def __init__(
        self, fetches: Sequence[Tensor], targets: Sequence[Node], feeds: Sequence[Tensor]
    ) -> None:
        self.fetches = tuple(fetches)
        self.targets = tuple(targets)
        self.feeds = tuple(feeds)

    @cached_property
    def resolved(self) -> Program:
        """The program itself."""
        return resolve_state(self.fetches, self.targets, self.feeds)

    @property
    def takes_placeholders(self) -> bool:
        """Whether what is fed are placeholders of known rank, which then are the inputs."""
        return all(t.node.op.name == "placeholder" and t.type.shape is not None for t in self.feeds)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs of the program."""
        return self.feeds if self.takes_placeholders else self.resolved.inputs

    @property
    def writes(self) -> bool:
        """Whether the program has updates: a random number advances a counter."""
        if "resolved" in self.__dict__ or not self.takes_placeholders:
            return bool(self.resolved.updates)
        return any(n.op.name == "assign" or n.kind == "random" for n in self.order())

    def order(self) -> list[Node]:
        """What the fetches and targets need, in the order it was made, down to placeholders."""
        stack = [*(t.node for t in self.fetches), *self.targets]
        seen: set[Node] = set(stack)
        blocks: set[int] = set()
        for node in stack:  # which grows meanwhile
            if node.op.name == "placeholder":
                continue
            for t in node.inputs:
                if t.node not in seen:
                    seen.add(t.node)
                    stack.append(t.node)
            if node.control and id(node.control) not in blocks:
                blocks.add(id(node.control))
                new = [n for n in node.control if n not in seen]
                seen.update(new)
                stack += dict.fromkeys(new)
        return sorted(seen, key=_id)


def _id(node: Node) -> int:
    return node.id
