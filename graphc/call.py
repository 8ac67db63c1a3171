"""One combination of fetches and feeds of a session, ready to run.

Imports: device_feeds, execution, feeds, fetches, node; the native entry's modules when there is
one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc import device_feeds, feeds
from graphc.device_names import is_gpu
from graphc.execution import Entry, native_entry
from graphc.fetches import Fetch
from graphc.node import Node, Tensor

if TYPE_CHECKING:
    from graphc.backends.llvm.entry import NativeEntry
    from graphc.backends.llvm.run_table import Record

Array = np.ndarray[Any, Any]


class Call:
    """One (fetches, feeds) combination, ready to run.

    Kept under the ids of its fetches and feeds, so it holds them: an id is theirs while it lives.
    """

    def __init__(
        self,
        flat: Sequence[Fetch],
        fed: Sequence[Tensor],
        entry: Entry,
        order: Sequence[int] | None = None,
    ) -> None:
        self.flat = tuple(flat)
        self.fed = tuple(fed)
        self._dtypes = [t.dtype.numpy for t in fed]
        self.entry = entry
        self._convert: Callable[[Tensor, Any], Any] = feeds.convert
        if is_gpu(entry.device):
            self._convert = functools.partial(device_feeds.convert, device=entry.device)
        self.order = order  # the feed that each input of the program is, where they differ
        self.used = 0
        self.slow_runs = 0
        self.native: Callable[..., Any] | None = None  # does what `Session._results` does
        self.native_entry: NativeEntry | None = None
        self.records: dict[type, Record] = {}  # what the native `run` knows it by
        unique = {id(t): i for i, t in enumerate(tensors_of(flat))}
        seen: set[int] = set()
        picks: list[tuple[int, bool]] = []
        for item in flat:
            picks.append((unique.get(id(item), -1), id(item) in seen))
            seen.add(id(item))
        self.picks = tuple(picks)
        self.results = len(unique)
        # whether the values are the results as they are
        self.straight = self.picks == tuple((i, False) for i in range(len(unique)))

    def make_entry(self, slow: Callable[..., Any], form: str) -> NativeEntry | None:
        """What takes over from `slow`, which does this call, where that is possible."""
        return native_entry(self.entry, slow, len(self.fed), self.results, form, self.order)

    def record_of(self, fetches: Any) -> Record | None:
        """What the native `run` recognises it by, written like this; None where it cannot."""
        kind = type(fetches)
        if not (kind is list or kind is tuple or isinstance(fetches, (Tensor, Node))):
            return None
        record = self.records.get(kind)
        if record is None and self.native_entry and not any(again for _, again in self.picks):
            from graphc.backends.llvm.run_table import Record

            form = kind.__name__ if kind in (list, tuple) else "bare"
            results = [i for i, _ in self.picks]
            record = Record(form, self.flat, self.fed, results, self.native_entry)
            self.records[kind] = record
        return record

    def was_used(self) -> bool:
        """Whether the native `run` has run it since this was asked last."""
        used = [r.was_used() for r in self.records.values()]  # asks each
        return any(used)

    def arrays(self, values: Iterable[Any]) -> list[Array]:
        """The inputs of the program from the values fed."""
        made = [
            v  # as `convert` would say, but sooner
            if type(v) is np.ndarray and v.dtype is dtype and v.flags.c_contiguous
            else self._convert(t, v)
            for t, dtype, v in zip(self.fed, self._dtypes, values, strict=True)
        ]
        return made if self.order is None else [made[i] for i in self.order]

    def values(self, results: Sequence[Any]) -> list[Any]:
        """One value per fetch: None for operations, copies for a tensor fetched again."""
        out: list[Any] = []
        for index, again in self.picks:
            if index < 0:
                out.append(None)
                continue
            value = results[index]
            if again:
                value = value.copy()
            out.append(value if value.ndim else value[()])
        return out


def tensors_of(flat: Sequence[Fetch]) -> tuple[Tensor, ...]:
    """The tensors among fetches, each once."""
    return tuple(dict.fromkeys(x for x in flat if isinstance(x, Tensor)))
