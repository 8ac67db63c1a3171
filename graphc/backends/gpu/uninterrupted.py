"""Work that no signal handler comes between, and that is told when one would have liked to.

Signal handlers run on the main thread, between any two of its steps.  Work in many steps that must
be done wholly or not at all is done by another thread then.  Imports: nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def uninterrupted(work: Callable[[threading.Event], T]) -> tuple[T, BaseException | None]:
    """What `work(stop)` returns, and what a signal handler raised meanwhile, when `stop` was set.

    Raises what the work raises.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        return work(stop), None
    results: list[T] = []
    errors: list[BaseException] = []
    finished = threading.Lock()
    finished.acquire()

    def run() -> None:
        try:
            results.append(work(stop))
        except BaseException as error:
            errors.append(error)
        finished.release()

    interrupt: BaseException | None = None
    threading.Thread(target=run, daemon=True).start()
    while not (results or errors):
        try:
            finished.acquire(timeout=1)
        except BaseException as error:
            interrupt = error
            stop.set()
    if errors:
        raise errors[0] from interrupt
    return results[0], interrupt
