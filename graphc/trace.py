"""Traces: how long each step of a run took.  Imports: location."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from graphc.location import Location


@dataclass(frozen=True)
class Event:
    """One step (a kernel launch, or a node on the reference device).

    start, seconds  since the traced run began, and how long it took
    """

    label: str
    start: float
    seconds: float
    blocks: int = 1
    locs: tuple[Location, ...] = ()


@dataclass
class Trace:
    """Collects the steps of the runs it is given to: `RunOptions(trace=trace)`.

    A traced run takes its steps one by one on the calling thread; its results are the same bits.
    """

    events: list[Event] = field(default_factory=list)

    def add(
        self, label: str, start: float, seconds: float, blocks: int, locs: Sequence[Location]
    ) -> None:
        self.events.append(Event(label, start, seconds, blocks, tuple(locs)))

    @property
    def seconds(self) -> float:
        """Time in steps, all traced runs together."""
        return sum(e.seconds for e in self.events)

    def table(self, rows: int = 20) -> str:
        """The slowest steps first: share, milliseconds, blocks, step and the user's lines."""
        total = self.seconds or 1.0
        lines = [" share      ms    blocks  step"]
        for e in sorted(self.events, key=lambda e: -e.seconds)[:rows]:
            where = ", ".join(str(loc) for loc in e.locs[:3])
            lines.append(
                f"{100 * e.seconds / total:5.1f}% {1e3 * e.seconds:8.3f} {e.blocks:8d}  "
                f"{e.label}  # {where}"
            )
        return "\n".join(lines) + "\n"

    def chrome_trace(self) -> dict[str, Any]:
        """The events in Chrome's trace format, for about:tracing and Perfetto."""
        return {
            "traceEvents": [
                {
                    "name": e.label,
                    "ph": "X",
                    "pid": os.getpid(),
                    "tid": 0,
                    "ts": 1e6 * e.start,
                    "dur": 1e6 * e.seconds,
                    "args": {"blocks": e.blocks, "lines": [str(loc) for loc in e.locs]},
                }
                for e in self.events
            ],
            "displayTimeUnit": "ns",
        }

    def __str__(self) -> str:
        return self.table()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the Chrome trace as JSON."""
        import json  # only here: importing graphc stays quick

        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.chrome_trace(), file)
