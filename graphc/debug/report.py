"""What a check found: stages that passed, and the first thing that is wrong.

Imports: location, debug.values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from graphc.debug.values import Difference
from graphc.location import Location


@dataclass(frozen=True)
class Finding:
    """The first wrong thing.

    stage       the pass or step of compiling that is to blame
    rule        the rule of the pass, where one is to blame
    message     what is wrong
    node        the operator or kernel, in words
    locs        the user's lines
    difference  the first wrong element
    subject     the program, kernel or plan to look at
    replay      how to see it again
    """

    stage: str
    message: str
    rule: str = ""
    node: str = ""
    locs: tuple[Location, ...] = ()
    difference: Difference | None = None
    subject: Any = field(default=None, repr=False, compare=False)
    replay: str = ""

    def __str__(self) -> str:
        head = f"{self.stage}, rule {self.rule}" if self.rule else self.stage
        lines = [f"wrong in {head}: {self.message}"]
        if self.node:
            lines.append(f"  in {self.node}")
        lines += [f"  at {loc}   {loc.source}".rstrip() for loc in self.locs[:3]]
        if self.difference is not None:
            lines.append(f"  {self.difference}")
        if self.replay:
            lines.append(f"  replay: {self.replay}")
        return "\n".join(lines)


@dataclass
class Report:
    """What was checked, in order, and the first finding (None: everything is right).

    stages  (name, what was compared) for each stage that is right
    """

    stages: list[tuple[str, str]] = field(default_factory=list)
    finding: Finding | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing wrong was found."""
        return self.finding is None

    def __str__(self) -> str:
        width = max((len(name) for name, _ in self.stages), default=0)
        lines = [f"{name:{width}}  {what}" for name, what in self.stages]
        lines.append("everything agrees" if self.finding is None else str(self.finding))
        return "\n".join(lines)


class FoundError(Exception):
    """Carries the first finding out of the checks."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def unique(locs: Sequence[Location]) -> tuple[Location, ...]:
    """Lines without repeats, in order."""
    return tuple(dict.fromkeys(locs))
