"""What a process does on the fake driver: one scenario, named on the command line.

    python tests/cuda/fake_gpu.py DRIVER SCENARIO

The driver of fake_driver.c is loaded before PyCUDA, which then takes it for the machine's own.
Kernels are compiled to PTX, loaded and launched as on hardware; what runs them is the emulator.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

DRIVER = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
DRIVER.fake_extent.restype = ctypes.c_size_t
DRIVER.fake_extent.argtypes = [ctypes.c_uint64]
DRIVER.fake_used.restype = ctypes.c_size_t
DRIVER.fake_memory.argtypes = [ctypes.c_size_t]

import graphc as gx  # noqa: E402
from graphc.backends.gpu import cuda_device  # noqa: E402
from graphc.backends.gpu.devices import open_device  # noqa: E402
from graphc.backends.gpu.emulator import EmulatedKernel  # noqa: E402
from graphc.backends.gpu.kernel_text import GpuKernel  # noqa: E402

KERNELS: dict[bytes, EmulatedKernel] = {}

_load = cuda_device.CudaDevice._loaded


def _loaded(self: cuda_device.CudaDevice, kernel: GpuKernel) -> Any:
    KERNELS[kernel.name.encode()] = EmulatedKernel(kernel)
    return _load(self, kernel)


cuda_device.CudaDevice._loaded = _loaded  # type: ignore[method-assign]


@ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_size_t
)
def _on_kernel(name: bytes, blocks: int, threads: int, arguments: int, size: int) -> None:
    kernel = KERNELS[name]
    assert threads == kernel.kernel.threads
    assert size == 8 * (kernel.kernel.buffers + kernel.kernel.sizes)
    words = np.frombuffer(ctypes.string_at(arguments, size), np.int64).tolist()
    buffers = words[: kernel.kernel.buffers]
    kernel.launch(blocks, [(a, DRIVER.fake_extent(a)) for a in buffers], words[len(buffers) :])


DRIVER.fake_on_kernel(_on_kernel)


class Model:
    """A few operators over a fed array and a variable."""

    def __init__(self) -> None:
        self.x = gx.placeholder("float32", [None, 5], name="x")
        self.w = gx.Variable(np.full((3, 5), 0.5, np.float32), name="w")
        self.y = gx.tanh(gx.reshape(self.x, [-1, 1, 5]) * self.w + 1)
        self.step = gx.assign_sub(self.w, 0.25 * self.w * gx.mean(self.x))
        self.init = gx.global_variables_initializer()

    def fed(self, n: int) -> dict[gx.Tensor, np.ndarray[Any, Any]]:
        return {self.x: np.linspace(-1, 2, n * 5, dtype=np.float32).reshape(n, 5)}


# ---- scenarios ---------------------------------------------------------------------------------


def values() -> None:
    """Runs give what the CPU gives, are recorded, and leave no context behind."""
    m = Model()
    with gx.Session(device="gpu") as gpu, gx.Session() as cpu:
        for session in (gpu, cpu):
            session.run(m.init)
        for n in (3, 7, 3, 3, 3, 7, 3):
            for fetched in (m.y, m.step):
                expected = cpu.run(fetched, m.fed(n))
                found = gpu.run(fetched, m.fed(n))
                if fetched is m.y:
                    np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(gpu.get_value(m.w), cpu.get_value(m.w), rtol=1e-6)
        before = DRIVER.fake_graphs(), DRIVER.fake_kernels(), DRIVER.fake_waits()
        gpu.run(m.y, m.fed(3))
        after = DRIVER.fake_graphs(), DRIVER.fake_kernels(), DRIVER.fake_waits()
        assert (after[0] - before[0], after[2] - before[2]) == (1, 1), (before, after)
        assert after[1] > before[1]
    assert DRIVER.fake_depth() == 0


def checks() -> None:
    """A run that fails its checks writes nothing, recorded or not."""
    i = gx.placeholder("int32", [None])
    w = gx.Variable(np.arange(4, dtype=np.float32))
    step = gx.assign(w, w + gx.gather(w, i)[0])
    with gx.Session(device="gpu") as session:
        session.run(gx.global_variables_initializer())
        expected = np.arange(4, dtype=np.float32)
        for index in (1, 9, 1, 9, 1, -5, 2):
            if -4 <= index < 4:
                session.run(step, {i: [index]})
                expected = expected + expected[index]
            else:
                try:
                    session.run(step, {i: [index]})
                    raise SystemExit("no error")
                except gx.errors.IndexOutOfRangeError as error:
                    assert str(index) in str(error)
            np.testing.assert_array_equal(session.get_value(w), expected)


def traced() -> None:
    """A trace has the device's own times."""
    m = Model()
    trace = gx.Trace()
    with gx.Session(device="gpu") as session:
        session.run(m.init)
        session.run([m.y, m.step], m.fed(3), gx.RunOptions(trace=trace))
    assert len(trace.events) > 1
    assert all(e.seconds > 0 and e.start >= 0 for e in trace.events), trace.events


def threads() -> None:
    """Threads that come and go share a session; a context left in one would end the process."""
    m = Model()
    with gx.Session(device="gpu") as session, gx.Session() as cpu:
        session.run(m.init)
        cpu.run(m.init)
        wrong = []

        def work(n: int) -> None:
            expected = cpu.run(m.y, m.fed(n))
            for _ in range(5):
                if not np.allclose(session.run(m.y, m.fed(n)), expected, rtol=1e-6):
                    wrong.append(n)
            assert DRIVER.fake_depth() == 0

        for _ in range(2):
            team = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 2, 3)]
            for t in team:
                t.start()
            for t in team:
                t.join()
        assert not wrong


def unloading() -> None:
    """Code that no program has any more goes, wherever Python finds that out."""
    cuda_device.RECENT = 2
    x = gx.placeholder("float32", [None])
    for i in range(5):
        with gx.Session(device="gpu") as session:
            y = gx.exp(x) * (i + 0.25)
            assert session.run(y, {x: np.zeros(3)}).sum() == 3 * (i + 0.25)
        del session, y
        collect = threading.Thread(target=gc.collect)
        collect.start()
        collect.join()
    device = open_device("gpu:0").device
    assert len(device._modules) <= 4, device._modules  # type: ignore[attr-defined]


def out_of_memory() -> None:
    """Too large a run names its largest tensors, and the session goes on."""
    DRIVER.fake_memory(8 << 20)
    x = gx.placeholder("float32", [None, 1000], name="pixels")
    y = gx.tanh(x * 2)
    with gx.Session(device="gpu") as session:
        small = session.run(y, {x: np.ones((3, 1000))})
        try:
            session.run(y, {x: np.ones((4000, 1000))})
            raise SystemExit("no error")
        except gx.errors.OutOfMemoryError as error:
            assert "pixels" in str(error), error
            assert "are free" in str(error), error
        np.testing.assert_array_equal(session.run(y, {x: np.ones((3, 1000))}), small)
    assert DRIVER.fake_used() <= 8 << 20


def fault() -> None:
    """After a fault in a kernel what only the device had is lost; the process goes on."""
    m = Model()
    with gx.Session(device="gpu") as session:
        session.run(m.init)
        kept = gx.Session(device="gpu")
        kept.run(m.init)
        home = kept.get_value(m.w)
        session.run(m.step, m.fed(3))
        DRIVER.fake_fail_kernel(0)
        for _ in range(2):
            try:
                session.run(m.step, m.fed(3))
                raise SystemExit("no error")
            except gx.errors.DeviceError as error:
                assert "illegal memory access" in str(error), error
            except gx.errors.UninitializedError as error:
                assert "was lost" in str(error), error
        np.testing.assert_array_equal(kept.get_value(m.w), home)
        try:
            gx.Session(device="gpu")
            raise SystemExit("no error")
        except gx.errors.DeviceError as error:
            assert "cannot be used any more" in str(error), error
        assert DRIVER.fake_depth() == 0
    with gx.Session() as cpu:
        cpu.run(m.init)
        cpu.run(m.step, m.fed(3))


class Torch:
    """An array as PyTorch shows one."""

    def __init__(self, array: gx.DeviceArray, number: int = 0) -> None:
        self.array = array
        self.number = number
        self.streams: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.number

    def __dlpack__(self, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.array.__dlpack__(stream=stream)


def interfaces() -> None:
    """What other libraries have on the device is fed as it is."""
    from graphc.dlpack import _given

    x = gx.placeholder("float32", [None, 4], name="x")
    options = gx.RunOptions(on_device=True)
    with gx.Session(device="gpu") as session:
        values = np.arange(8, dtype=np.float32).reshape(2, 4)
        there = session.run(x * 2, {x: values}, options)
        assert there.__cuda_array_interface__["data"][0] == there.address
        for fed in (there, Torch(there)):
            np.testing.assert_array_equal(session.run(x + 1, {x: fed}), 2 * values + 1)
        assert not _given, "what was lent is given back"
        shown = Cupy(there)
        np.testing.assert_array_equal(session.run(x + 1, {x: shown}), 2 * values + 1)
        for bad, said in (
            (Torch(there, 1), "in the memory of gpu:1, and the session runs on gpu:0"),
            (Cupy(there, strides=(4, 8)), "not C-contiguous"),
        ):
            try:
                session.run(x + 1, {x: bad})
                raise SystemExit("no error")
            except gx.errors.FeedTypeError as error:
                assert said in str(error), error
    with gx.Session() as cpu:
        np.testing.assert_array_equal(cpu.run(x, {x: there.numpy()}), 2 * values)
        try:
            cpu.run(x, {x: there})
            raise SystemExit("no error")
        except gx.errors.FeedTypeError as error:
            assert "in CUDA memory" in str(error), error


class Cupy:
    """An array as CuPy showed one before it knew DLPack."""

    def __init__(self, array: gx.DeviceArray, strides: Any = None) -> None:
        self.array = array
        self.strides = strides

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.array.__cuda_array_interface__, "strides": self.strides, "stream": 1}


def forked() -> None:
    """A child cannot use what its parent opened, says so, and does the rest on the CPU."""
    m = Model()
    with gx.Session(device="gpu") as session:
        session.run(m.init)
        session.run(m.step, m.fed(3))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                session.get_value(m.w)
            except gx.errors.DeviceError as error:
                code = 0 if "forked" in str(error) else 2
            with gx.device("gpu"):
                y = m.x + 1
            with gx.Session() as other:
                other.run(y, m.fed(2))
                code += 4 * ("forked" not in str(other.placements()[0]))
            sys.stdout.flush()
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        session.run(m.step, m.fed(3))
        assert np.isfinite(session.get_value(m.w)).all()


def too_old() -> None:
    """A GPU of an older generation is refused by name."""
    DRIVER.fake_capability(7, 0)
    _refused("7.0", "7.5")


def no_device() -> None:
    """A driver without a device."""
    DRIVER.fake_devices(0)
    _refused("GPU")


def old_driver() -> None:
    """A driver that knows no graphs."""
    DRIVER.fake_version(11000)
    _refused("11.0", "too old")


def other_number() -> None:
    """A device that is not there."""
    try:
        gx.Session(device="gpu:3")
        raise SystemExit("no error")
    except gx.errors.DeviceError as error:
        assert "there is no gpu:3" in str(error), error
    open_device("gpu:0")


def _refused(*said: str) -> None:
    try:
        gx.Session(device="gpu")
        raise SystemExit("no error")
    except gx.errors.DeviceError as error:
        assert all(s in str(error) for s in said), error
    with gx.device("/gpu:0"):
        x = gx.placeholder("float32", [2])
        y = x + 1
    with gx.Session() as session:
        np.testing.assert_array_equal(session.run(y, {x: [1, 2]}), [2, 3])
        assert session.placements()[0].device == "cpu"


def main() -> None:
    """Run a scenario in a graph of its own."""
    scenario: Callable[[], None] = globals()[sys.argv[2]]
    with gx.Graph(seed=1).as_default():
        scenario()
    print("done")


if __name__ == "__main__":
    main()
