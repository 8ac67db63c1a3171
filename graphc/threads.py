"""How many threads a run may use: what the machine has, what was asked for, what is allowed now.

    with gx.thread_limits(1):
        ...                     # every run of the process, of whatever session, on its own thread

Imports: flags, forks.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from graphc import flags
from graphc.errors import GraphTypeError
from graphc.forks import new_lock
from graphc.version import __version__

UNLIMITED = 1 << 16
"""More threads than any run uses."""

CGROUPS = "/sys/fs/cgroup"
"""Where Linux shows control groups."""

_lock = new_lock()
_limits: list[int] = []  # of the blocks entered and not left, and of threadpoolctl
_listeners: list[Callable[[int], None]] = []


# ---- how many there are ------------------------------------------------------------------------


def processors() -> int:
    """The processors this process may use: its affinity, and its share in a container."""
    count = getattr(os, "process_cpu_count", None)
    if count is not None:
        allowed = count() or 1
    elif hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return min(allowed, _quota())


def default_threads() -> int:
    """The threads of a session that does not say: GRAPHC_THREADS, OMP_NUM_THREADS or processors."""
    return flags.THREADS.value or flags.OMP_THREADS.value or processors()


@functools.lru_cache(maxsize=1)
def _quota() -> int:
    """The processors that the process's control groups (Linux) let it keep busy, rounded up."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            lines = [row.rstrip("\n").split(":", 2) for row in file]
    except OSError:
        return UNLIMITED
    shares = [share for row in lines if len(row) == 3 for share in _shares(row[1], row[2])]
    return max(1, math.ceil(min(shares, default=float(UNLIMITED))))


def _shares(controllers: str, path: str) -> Iterator[float]:
    """The processors a control group and those it lies in allow."""
    if controllers and "cpu" not in controllers.split(","):
        return
    root = os.path.join(CGROUPS, controllers)
    parts = [p for p in path.split("/") if p not in ("", "..")]
    for n in range(len(parts) + 1):
        folder = os.path.join(root, *parts[:n])
        if controllers:
            quota = _numbers(f"{folder}/cpu.cfs_quota_us") + _numbers(f"{folder}/cpu.cfs_period_us")
        else:
            quota = _numbers(f"{folder}/cpu.max")
        if len(quota) == 2 and min(quota) > 0:
            yield quota[0] / quota[1]


def _numbers(path: str) -> list[int]:
    """The whole numbers in a file; none where it says 'max' or is not there."""
    try:
        with open(path, encoding="utf-8") as file:
            return [int(word) for word in file.read().split()]
    except (OSError, ValueError):
        return []


# ---- how many are allowed now ------------------------------------------------------------------


@contextlib.contextmanager
def thread_limits(threads: int) -> Iterator[None]:
    """Inside the block no run of this process uses more threads, whichever thread starts it.

    Results do not depend on it.  Raises GraphTypeError if `threads` is not a positive int.
    """
    if not isinstance(threads, int) or threads < 1:
        raise GraphTypeError(f"thread_limits: threads must be a positive int, not {threads!r}")
    _change(add=threads)
    try:
        yield
    finally:
        _change(remove=threads)


def limit() -> int:
    """The threads a run may use at most now."""
    return min(_limits, default=UNLIMITED)


def when_limited(listener: Callable[[int], None]) -> None:
    """Call with the limit, now and whenever it changes."""
    with _lock:
        _listeners.append(listener)
        listener(limit())


def _change(add: int | None = None, remove: int | None = None) -> None:
    with _lock:
        if remove in _limits:
            _limits.remove(remove)
        if add is not None:
            _limits.append(add)
        for listener in _listeners:
            listener(limit())


# ---- threadpoolctl -----------------------------------------------------------------------------

_registered: list[Any] = []
_outside: list[int] = []  # the limit that threadpoolctl has set


def join_threadpoolctl() -> None:
    """Let `threadpoolctl.threadpool_limits` limit runs too, if the program has imported it.

    threadpoolctl looks for loaded libraries by the names of their files, and compiled programs are
    no files.  So its controller for graphc stands where NumPy's core is, which always is loaded.
    """
    module: Any = sys.modules.get("threadpoolctl")
    if module is None or _registered or not hasattr(module, "register"):
        return

    class GraphcController(module.LibController):  # type: ignore[misc]
        """graphc's threads, to threadpoolctl."""

        user_api = "graphc"
        internal_api = "graphc"
        filename_prefixes = ("_multiarray_umath",)

        def get_num_threads(self) -> int:
            return min(limit(), processors())

        def set_num_threads(self, num_threads: int) -> None:
            old = _outside.pop() if _outside else None
            new = num_threads if num_threads < processors() else None  # all there are is no limit
            if new is not None:
                _outside.append(new)
            _change(add=new, remove=old)

        def get_version(self) -> str:
            return __version__

        def set_additional_attributes(self) -> None:
            pass

    _registered.append(GraphcController)
    module.register(GraphcController)
