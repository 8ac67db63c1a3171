"""Traces: how long each step of a run took, how much work it was, and how near that is to the most
the machine can do.  Imports: location.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphc.location import Location


@dataclass(frozen=True)
class Roofline:
    """The most that the processor core of a traced run can do.

    flops  operations on float32 a second      bandwidth  bytes a second, to and from memory
    `gx.measure_roofline()` measures both.
    """

    flops: float
    bandwidth: float

    def seconds(self, flops: float, bytes_moved: float) -> float:
        """The least time for some work: arithmetic and memory at the same time."""
        return max(flops / self.flops, bytes_moved / self.bandwidth)


@dataclass(frozen=True)
class Event:
    """One step (a kernel launch, or a node on the reference device).

    start, seconds  since the traced run began, and how long it took
    flops, bytes    operations on floats, and bytes of distinct elements read or written; 0 on the
                    reference device
    kernel          the kernel's name in the plan, the same for all steps that launch it
    """

    label: str
    start: float
    seconds: float
    blocks: int = 1
    locs: tuple[Location, ...] = ()
    flops: int = 0
    bytes: int = 0
    kernel: str = ""


@dataclass(frozen=True)
class Row:
    """Steps together: what they have in common, how many, their time and their work.

    fraction  of the roofline: 1 is the least time for this work with memory outside all caches, so
              steps on small arrays may be above it; None without a roofline
    """

    name: str
    steps: float
    seconds: float
    share: float
    flops: float
    bytes: float
    fraction: float | None


class Table(tuple[Row, ...]):
    """Rows, the slowest first; prints as text."""

    __slots__ = ()

    def __str__(self) -> str:
        lines = [f" share      ms   steps   GFLOP/s      GB/s   roof  {'name'}"]
        for r in self:
            lines.append(
                f"{100 * r.share:5.1f}% {1e3 * r.seconds:8.3f} {r.steps:6g} "
                f"{_rate(r.flops, r.seconds)} {_rate(r.bytes, r.seconds)} {_part(r.fraction)}  "
                f"{r.name}"
            )
        return "\n".join(lines) + "\n"


def _operators(event: Event) -> list[str]:
    """The operators a step's label names."""
    names = event.label.partition(" by chunks")[0].partition(" combined")[0].split("+")
    return ["others" if name.endswith(" more") else name for name in names]


def _rate(amount: float, seconds: float) -> str:
    return f"{1e-9 * amount / seconds:9.2f}" if seconds and amount else " " * 8 + "-"


def _part(fraction: float | None) -> str:
    return "     -" if fraction is None else f"{100 * fraction:5.0f}%"


@dataclass
class Trace:
    """Collects the steps of the runs it is given to: `RunOptions(trace=trace)`.

    roofline  what to compare the steps' work with (None: nothing)
    A traced run takes its steps one by one on one thread; its results are the same bits.
    """

    events: list[Event] = field(default_factory=list)
    roofline: Roofline | None = None

    def add(
        self,
        label: str,
        start: float,
        seconds: float,
        blocks: int,
        locs: Sequence[Location],
        work: tuple[int, int] = (0, 0),
        kernel: str = "",
    ) -> None:
        """Note a step; `work` is its operations on floats and the bytes it moves."""
        self.events.append(Event(label, start, seconds, blocks, tuple(locs), *work, kernel))

    @property
    def seconds(self) -> float:
        """Time in steps, all traced runs together."""
        return sum(e.seconds for e in self.events)

    def fraction(self, flops: float, bytes_moved: float, seconds: float) -> float | None:
        """The share of the roofline that some work in some seconds reaches."""
        if self.roofline is None or not seconds or not (flops or bytes_moved):
            return None
        return self.roofline.seconds(flops, bytes_moved) / seconds

    def table(self, rows: int = 20) -> str:
        """The slowest steps first: share, milliseconds, work, step and the user's lines.

        `roof` is the share of the roofline's speed that the step reaches.
        """
        total = self.seconds or 1.0
        lines = [" share      ms    blocks     MFLOP        MB   roof  step"]
        for e in sorted(self.events, key=lambda e: -e.seconds)[:rows]:
            where = ", ".join(str(loc) for loc in e.locs[:3])
            lines.append(
                f"{100 * e.seconds / total:5.1f}% {1e3 * e.seconds:8.3f} {e.blocks:8d} "
                f"{1e-6 * e.flops:9.3f} {1e-6 * e.bytes:9.3f} "
                f"{_part(self.fraction(e.flops, e.bytes, e.seconds))}  {e.label}  # {where}"
            )
        return "\n".join(lines) + "\n"

    # ---- steps together

    def by_kernel(self) -> Table:
        """Steps that launch the same kernel together (on the reference device: the same node)."""
        return self._grouped(lambda e: [f"{e.kernel} {e.label}".strip()])

    def by_op(self) -> Table:
        """Time and work per operator; a fused step is divided equally among its operators."""
        return self._grouped(_operators)

    def by_line(self) -> Table:
        """Time and work per line of the user's program; a step of several is divided equally."""
        return self._grouped(lambda e: list(dict.fromkeys(map(str, e.locs))) or ["?"])

    def _grouped(self, names: Callable[[Event], Iterable[str]]) -> Table:
        found: dict[str, list[float]] = {}
        for e in self.events:
            listed = list(names(e))
            for name in listed:
                sums = found.setdefault(name, [0.0] * 4)
                for i, x in enumerate((1.0, e.seconds, e.flops, e.bytes)):
                    sums[i] += x / len(listed)
        total = self.seconds or 1.0
        rows = [
            Row(
                n,
                steps,
                seconds,
                seconds / total,
                flops,
                moved,
                self.fraction(flops, moved, seconds),
            )
            for n, (steps, seconds, flops, moved) in found.items()
        ]
        return Table(sorted(rows, key=lambda r: -r.seconds))

    # ---- files

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
                    "args": self._arguments(e),
                }
                for e in self.events
            ],
            "displayTimeUnit": "ns",
        }

    def _arguments(self, e: Event) -> dict[str, Any]:
        fraction = self.fraction(e.flops, e.bytes, e.seconds)
        shown = {"flops": e.flops, "bytes": e.bytes, "kernel": e.kernel}
        if fraction is not None:
            shown["roofline"] = round(fraction, 4)
        return {"blocks": e.blocks, "lines": [str(loc) for loc in e.locs], **shown}

    def __str__(self) -> str:
        return self.table()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the Chrome trace as JSON."""
        import json  # only here: importing graphc stays quick

        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.chrome_trace(), file)
