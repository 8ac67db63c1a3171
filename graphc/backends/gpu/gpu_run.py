"""One run of a plan on a GPU.

A run whose arguments lie where they lay in an earlier one is recorded and replayed from then on.
Steps up to the first that writes state may fail or be given up; what follows is asked for in one
piece, and a word that is copied back behind the last step says that it is done.
Imports: base, device, layout, seat, uninterrupted, device_array, plan, trace.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc.backends.base import fault_error, mark_committed, require_time
from graphc.backends.gpu.device import Array, Stretch
from graphc.backends.gpu.layout import Launch
from graphc.backends.gpu.seat import Bound, Replay
from graphc.backends.gpu.uninterrupted import uninterrupted
from graphc.device_array import DeviceArray
from graphc.dims import Dim
from graphc.errors import DeviceError
from graphc.kernel import sizes_of
from graphc.kernel_work import work
from graphc.trace import Trace

if TYPE_CHECKING:
    from graphc.backends.gpu.executable import GpuExecutable

WIDEST = 16
"""Bytes that kernels read at once: an array that lies between is copied to where it does not."""

SLOW = 0.02
"""Seconds; a run that takes longer can be interrupted until it writes state."""

LOOK_AFTER = 16
"""Steps of a run with a deadline after which it looks at the time."""


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
        self.layout = bound.layout
        self.inputs = inputs
        self.on_device = on_device
        self.written = [state[i] for i in executable.written]
        self.state = self.memory.residents.place(state)
        self.results = self._make_results()
        self.block = self.memory.take(self.layout.bytes)
        self._committing = False  # whether state may have changed
        self._torn = False  # whether only some of the steps that change it may have been asked for
        try:
            self.seat = self.block.seat(bound, on_device, self.device)
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
        """Put small inputs where one copy takes them to the device."""
        self.seat.done[0] = 0
        for place, array in zip(self.seat.inputs, self.inputs, strict=False):
            if not isinstance(array, DeviceArray):
                place[...] = array

    def _argument(self, kind: str, index: int) -> Stretch | None:
        """Where an argument lies that is not in the block."""
        if kind == "state":
            return self.state[index]
        if kind == "constant":
            return self.executable.constants[index]
        if kind == "input":
            array = self.inputs[index]
            if isinstance(array, DeviceArray) and array.address % WIDEST == 0:
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
        self.device.copy_in(self.seat.to_device, self.seat.from_host)
        for border, array in zip(self.layout.inputs, self.inputs, strict=True):
            if isinstance(array, DeviceArray) and array.address % WIDEST:
                to = self.block.address + border.offset
                self.device.copy_within(to, array.address, array.nbytes)

    def _copy_large_in(self) -> None:
        if self.seat.stages_inputs:
            return
        for border, array in zip(self.layout.inputs, self.inputs, strict=True):
            if not isinstance(array, DeviceArray):
                self.device.copy_in(self.block.address + border.offset, array)

    def _copy_out(self) -> None:
        self.device.copy_out(self.seat.to_host, self.seat.from_device)

    def _copy_header(self) -> None:
        """Bring back what checks recorded, and not yet the word behind it."""
        size = self.layout.done - self.layout.header
        self.device.copy_out(self.seat.to_host[:size], self.seat.from_device)

    def _copy_large_out(self) -> None:
        """What the copy of the header does not bring along."""
        layout, base = self.layout, self.block.address
        if self.on_device:
            if self.results:
                start = layout.header_end
                to = self.results[0].address - layout.outputs[0].offset + start
                self.device.copy_within(to, base + start, layout.outputs_end - start)
        elif not self.seat.stages_outputs:
            for border, array in zip(layout.outputs, self.results, strict=True):
                self.device.copy_out(array, base + border.offset)

    # ---- the run

    @property
    def _looks(self) -> bool:
        """Whether the host has a look before state is written: at checks, or for a signal."""
        return bool(self.layout.after and (self.plan.checks or self.seat.slow))

    def go(self, trace: Trace | None, deadline: float | None) -> list[Any]:
        """Run and return the outputs."""
        idle = False
        interrupt: BaseException | None = None
        try:
            replay = None
            if trace is None and deadline is None:
                replay = self.seat.replay(self._key(), self._record)
            if replay is None:
                began = time.perf_counter()
                _, interrupt = uninterrupted(self._steps(trace, deadline))
                self.seat.slow = time.perf_counter() - began > SLOW
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
            if self.seat.done[0]:
                mark_committed(error)
            elif self._torn or (self._committing and isinstance(error, DeviceError)):
                why = f"as it was lost when a run failed on {self.device.name}: {error}"
                self.memory.residents.lose(self.written, why)

    def _key(self) -> Any:
        """Where everything lies that is not in the block: a recorded run has it fixed."""
        feeds = [a.address if isinstance(a, DeviceArray) else 0 for a in self.inputs]
        return *feeds, *[address for address, _ in self.state]

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
        if self.plan.checks and self.seat.faults[:, 0].any():
            raise fault_error(self.plan, self.seat.faults)

    def _outputs(self) -> list[Any]:
        for place, array in zip(self.seat.outputs, self.results, strict=False):
            array[...] = place
        return self.results


class _Owner:
    """Alive while any of a run's arrays on the device is."""


class _Clock:
    """Launches steps and, for a trace, has the device note when each begins and ends."""

    def __init__(self, run: GpuRun, trace: Trace | None) -> None:
        self._run = run
        self._trace = trace
        self._times: list[tuple[Launch, Any, Any]] = []

    def time(self, launch: Launch) -> None:
        """Launch a step."""
        if self._trace is None:
            self._run._launch(launch)
            return
        begun = self._run.device.mark()
        self._run._launch(launch)
        self._times.append((launch, begun, self._run.device.mark()))

    def note(self) -> None:
        """Tell the trace; everything has been done."""
        plan, device = self._run.plan, self._run.device
        if self._trace is None:
            return
        for launch, begun, ended in self._times:
            step, kernel = plan.steps[launch.step], plan.kernels[launch.kernel]
            sizes: dict[Dim, int] = dict(zip(sizes_of(kernel), launch.sizes, strict=True))
            amount = work(kernel, sizes)
            self._trace.add(
                step.label,
                device.seconds(self._times[0][1], begun),
                device.seconds(begun, ended),
                launch.blocks,
                step.locs,
                (amount.flops, amount.bytes),
                f"k{launch.kernel}",
            )
