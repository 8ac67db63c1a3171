"""One run of a plan on a GPU.

A run whose arguments lie where they lay in an earlier one is recorded and replayed from then on.
Steps up to the first that writes state may fail or be given up; what follows is asked for in one
piece, and a word that is copied back behind the last step says that it is done.
Imports: base, device, layout, memory, uninterrupted, device_array, plan, trace.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc.backends.base import fault_error, mark_committed, require_time
from graphc.backends.gpu.device import Array, Stretch
from graphc.backends.gpu.layout import FAULT_BYTES, Launch, Layout
from graphc.backends.gpu.uninterrupted import uninterrupted
from graphc.device_array import DeviceArray
from graphc.dims import Dim
from graphc.errors import DeviceError
from graphc.forks import new_lock
from graphc.kernel import sizes_of
from graphc.kernel_work import work
from graphc.trace import Trace

if TYPE_CHECKING:
    from graphc.backends.gpu.executable import GpuExecutable

REPLAYS = 8
"""How many recorded runs are kept for one set of sizes."""

LOOK_AFTER = 16
"""Steps of a run with a deadline after which it looks at the time."""

Replay = tuple[Callable[[], None], Callable[[], None] | None]
"""What does a recorded run: up to the look at its checks, if there is one, and from there on."""


class Bound:
    """A plan's layout at some sizes, and the runs recorded for them."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.used = 0
        self._replays: OrderedDict[Any, Replay | None] = OrderedDict()
        self._lock = new_lock()

    def replay(self, key: Any, record: Callable[[], Replay]) -> Replay | None:
        """The recorded run with these addresses, recorded if it has been seen before.

        The caller has the block that the key names, so that nobody else asks for the same.
        """
        with self._lock:
            seen = key in self._replays
            found = self._replays.pop(key, None)
        if seen and found is None:
            found = record()
        with self._lock:
            self._replays[key] = found
            if len(self._replays) > REPLAYS:
                self._replays.popitem(last=False)
        return found


class GpuRun:
    """A run in a block of its own."""

    def __init__(
        self,
        executable: GpuExecutable,
        bound: Bound,
        inputs: Sequence[Array],
        state: Sequence[Array],
        on_device: bool,
    ) -> None:
        """Find memory for everything; raises OutOfMemoryError."""
        self.plan = executable.plan
        self.memory = executable.memory
        self.device = executable.memory.device
        self.executable = executable
        self.bound = bound
        self.layout = bound.layout
        self.inputs = inputs
        self.on_device = on_device
        written = {
            s.args[w].index for s in self.plan.steps for w in s.writes if s.args[w].kind == "state"
        }
        self.written = [state[i] for i in sorted(written)]
        self.state = self.memory.residents.place(state)
        self.results = self._make_results()
        self.block = self.memory.take(self.layout.bytes)
        self._committing = False  # whether state may have changed
        self._torn = False  # whether only some of the steps that change it may have been asked for
        try:
            self._stage()
        except BaseException:
            self.memory.give(self.block)
            raise

    # ---- memory

    def _make_results(self) -> list[Any]:
        if not self.on_device:
            return [np.empty(b.shape, b.dtype) for b in self.layout.outputs]
        start = self.layout.header_end
        kept = self.memory.take(max(self.layout.outputs_end - start, 1))
        owner = _Owner()
        self.memory.release_with(owner, kept)
        return [
            DeviceArray(kept.address + b.offset - start, b.shape, b.dtype, self.device, owner)
            for b in self.layout.outputs
        ]

    def _stage(self) -> None:
        """Put header and small inputs where one copy takes them to the device."""
        layout = self.layout
        staging = self.block.staged(self.device, layout.staging_bytes)
        start, end = layout.copied_in
        low, high = layout.copied_out
        if self.on_device:
            high = layout.header_end
        self._in, self._out = staging[: end - start], staging[end - start :][: high - low]
        header = self._in[layout.header - start :]
        header[:] = 0
        header[layout.done - layout.header :][:8].view(np.int64)[0] = 1
        self._done = self._out[layout.done - low :][:8].view(np.int64)
        self._done[0] = 0
        self._faults = self._out[: FAULT_BYTES * layout.faults].view(np.int64).reshape(-1, 4)
        self._direct_inputs = [
            (b.offset, a)
            for b, a in zip(layout.inputs, self.inputs, strict=True)
            if start > 0 and a.size and not isinstance(a, DeviceArray)
        ]
        for border, array in zip(layout.inputs, self.inputs, strict=True):
            if start == 0 and border.bytes and not isinstance(array, DeviceArray):
                place = self._in[border.offset : border.offset + border.bytes]
                place.view(border.dtype).reshape(border.shape)[...] = array

    def _argument(self, kind: str, index: int) -> Stretch | None:
        """Where an argument lies that is not in the block."""
        if kind == "state":
            return self.state[index]
        if kind == "constant":
            return self.executable.constants[index]
        if kind == "input":
            array = self.inputs[index]
            if isinstance(array, DeviceArray):
                return array.address, array.nbytes
        return None

    # ---- what the device is asked for

    def _launch(self, launch: Launch) -> None:
        arguments = []
        for ref, size in launch.args:
            outside = self._argument(ref.kind, ref.index)
            arguments.append(outside or (self.layout.address(ref, self.block.address), size))
        function = self.executable.functions[launch.kernel]
        self.device.launch(function, launch.blocks, arguments, launch.sizes)

    def _copy_in(self) -> None:
        start = self.layout.copied_in[0]
        self.device.copy_in(self.block.address + start, self._in)

    def _copy_large_in(self) -> None:
        for offset, array in self._direct_inputs:
            self.device.copy_in(self.block.address + offset, array)

    def _copy_out(self) -> None:
        self.device.copy_out(self._out, self.block.address + self.layout.header)

    def _copy_header(self) -> None:
        size = self.layout.done - self.layout.header
        self.device.copy_out(self._out[:size], self.block.address + self.layout.header)

    def _copy_large_out(self) -> None:
        """What the copy of the header does not bring along."""
        layout, base = self.layout, self.block.address
        if self.on_device:
            if self.results:
                start = layout.header_end
                size = layout.outputs_end - start
                to = self.results[0].address - layout.outputs[0].offset + start
                self.device.copy_within(to, base + start, size)
        elif layout.copied_out[1] == layout.header_end:
            for border, array in zip(layout.outputs, self.results, strict=True):
                if array.size:
                    self.device.copy_out(array, base + border.offset)

    # ---- the run

    @property
    def _looks(self) -> bool:
        """Whether the host has to look at the checks before state is written."""
        return bool(self.plan.checks and self.layout.after)

    def go(self, trace: Trace | None, deadline: float | None) -> list[Any]:
        """Run and return the outputs."""
        idle = False
        interrupt: BaseException | None = None
        try:
            replay = None
            if trace is None and deadline is None:
                replay = self.bound.replay(self._key(), self._record)
            if replay is None:
                work = self._steps(trace, deadline)
                _, interrupt = uninterrupted(work)
            else:
                self._replay(replay)
            idle = True
            if interrupt is not None:
                raise interrupt
            return self._outputs()
        except BaseException as error:
            self._settle(error)
            idle = True
            raise
        finally:
            if idle:
                self.memory.give(self.block)

    def _settle(self, error: BaseException) -> None:
        """Wait for what was asked for, and say what became of the variables."""
        try:
            self.device.synchronize()
        finally:
            if self._done[0]:
                mark_committed(error)
            elif self._torn or (self._committing and isinstance(error, DeviceError)):
                why = f"as it was lost when a run failed on {self.device.name}: {error}"
                self.memory.residents.lose(self.written, why)

    def _key(self) -> Any:
        """Everything that a recorded run has fixed."""
        feeds = tuple(a.address if isinstance(a, DeviceArray) else 0 for a in self.inputs)
        staging = self.block.staging.ctypes.data
        return self.on_device, self.block.address, staging, *feeds, *(a for a, _ in self.state)

    def _record(self) -> Replay:
        def first() -> None:
            self._copy_in()
            for launch in self.layout.before:
                self._launch(launch)
            if self._looks:
                self._copy_header()
            else:
                second()

        def second() -> None:
            for launch in self.layout.after:
                self._launch(launch)
            self._copy_out()

        return self.device.capture(first), self.device.capture(second) if self._looks else None

    def _replay(self, replay: Replay) -> None:
        first, second = replay
        self._copy_large_in()
        if second is None:
            self._commit()
            first()
        else:
            first()
            self.device.synchronize()
            self._require_sound()
            self._commit()
            second()
        self._finish()

    def _commit(self) -> None:
        """State may change from now on."""
        if self.written:
            self.memory.residents.mark_written(self.written)
            self._committing = True

    def _finish(self) -> None:
        self._copy_large_out()
        self.device.synchronize()
        self._require_sound()

    def _steps(
        self, trace: Trace | None, deadline: float | None
    ) -> Callable[[threading.Event], None]:
        """The run step by step; ends early, with nothing changed, when it is told to stop."""

        def steps(stop: threading.Event) -> None:
            with self.device.active():
                self._copy_large_in()
                self._copy_in()
                clock = _Clock(self, trace)
                for i, launch in enumerate(self.layout.before):
                    if stop.is_set():
                        return
                    clock.time(launch)
                    if deadline is not None and i % LOOK_AFTER == LOOK_AFTER - 1:
                        self.device.synchronize()
                        require_time(deadline)
                if self._looks or deadline is not None:
                    self._copy_header()
                    self.device.synchronize()
                    self._require_sound()
                    require_time(deadline)
                if stop.is_set():
                    return
                self._commit()
                self._torn = self._committing
                for launch in self.layout.after:
                    clock.time(launch)
                self._copy_out()
                self._torn = False
                self._finish()
                clock.note()

        return steps

    def _require_sound(self) -> None:
        """Raise the error of the first check that failed."""
        if self.plan.checks and self._faults[:, 0].any():
            raise fault_error(self.plan, self._faults)

    def _outputs(self) -> list[Any]:
        layout = self.layout
        low, high = layout.copied_out
        if not self.on_device and high > layout.header_end:
            for border, array in zip(layout.outputs, self.results, strict=True):
                place = self._out[border.offset - low :][: border.bytes]
                array[...] = place.view(border.dtype).reshape(border.shape)
        return self.results


class _Owner:
    """Alive while any of a run's arrays on the device is."""


class _Clock:
    """Launches steps and, for a trace, takes their times."""

    def __init__(self, run: GpuRun, trace: Trace | None) -> None:
        self._run = run
        self._trace = trace
        self._times: list[tuple[Launch, float, float]] = []
        if trace is not None:
            run.device.synchronize()

    def time(self, launch: Launch) -> None:
        """Launch a step."""
        begun = time.perf_counter()
        self._run._launch(launch)
        if self._trace is not None:
            self._run.device.synchronize()
            self._times.append((launch, begun, time.perf_counter()))

    def note(self) -> None:
        """Tell the trace."""
        plan = self._run.plan
        if self._trace is None:
            return
        for launch, begun, ended in self._times:
            step, kernel = plan.steps[launch.step], plan.kernels[launch.kernel]
            sizes: dict[Dim, int] = dict(zip(sizes_of(kernel), launch.sizes, strict=True))
            amount = work(kernel, sizes)
            self._trace.add(
                step.label,
                begun - self._times[0][1],
                ended - begun,
                launch.blocks,
                step.locs,
                (amount.flops, amount.bytes),
                f"k{launch.kernel}",
            )
