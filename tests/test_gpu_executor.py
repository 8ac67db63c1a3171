"""Programs on a GPU, on the device that the emulator stands for: values, variables, failures."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import graphc as gx
from graphc.backends.gpu import devices, layout, probe
from graphc.backends.gpu.emulated_device import EmulatedDevice
from graphc.backends.gpu.emulator import EmulatedKernel, EmulatorError
from graphc.backends.gpu.memory import DeviceMemory


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> EmulatedDevice:
    device = EmulatedDevice(capacity=8 << 20)
    monkeypatch.setitem(devices._opened, "emulated-gpu", DeviceMemory(device))
    return device


class Model:
    """A few operators over a fed array and a variable."""

    def __init__(self) -> None:
        self.x = gx.placeholder("float32", [None, 5], name="x")
        self.w = gx.Variable(np.full((3, 5), 0.5, np.float32), name="w")
        self.y = gx.tanh(gx.reshape(self.x, [-1, 1, 5]) * self.w + 1)
        self.step = gx.assign_sub(self.w, 0.25 * self.w * self.w)
        self.init = gx.global_variables_initializer()

    def fed(self, n: int) -> dict[gx.Tensor, np.ndarray]:
        return {self.x: np.linspace(-2, 2, n * 5, dtype=np.float32).reshape(n, 5)}


def test_values_of_every_size_are_those_of_the_cpu() -> None:
    m = Model()
    with gx.Session(device="emulated-gpu") as gpu, gx.Session() as cpu:
        for session in (gpu, cpu):
            session.run(m.init)
        for n in (3, 7, 3, 3, 0, 1, 3, 7, 7):
            np.testing.assert_array_equal(gpu.run(m.y, m.fed(n)), cpu.run(m.y, m.fed(n)))


def test_a_new_size_compiles_nothing_and_a_known_one_is_replayed() -> None:
    m = Model()
    with gx.Session(device="emulated-gpu") as session:
        session.run(m.init)
        for n in (3, 4, 5, 3, 3):
            session.run(m.y, m.fed(n))
        made = session.compiled()
        assert len(made) == 2  # the initializer and y
        assert made[1].kernels > 0


def test_a_variable_stays_on_the_device_until_it_is_read() -> None:
    m = Model()
    with gx.Session(device="emulated-gpu") as session:
        session.run(m.init)
        expected = np.full((3, 5), 0.5, np.float32)
        for _ in range(5):
            session.run(m.step)
            expected -= np.float32(0.25) * expected * expected
        (array,) = session.variables._values.values()
        assert (array != expected).all()  # the host's array is behind
        np.testing.assert_allclose(session.get_value(m.w), expected, rtol=1e-6)
        np.testing.assert_array_equal(session.get_value(m.w), array)
        np.testing.assert_array_equal(session.run(m.w), array)
        session.set_value(m.w, 2 * np.ones((3, 5)))
        session.run(m.step)
        np.testing.assert_array_equal(session.get_value(m.w), np.ones((3, 5)))


def test_large_arrays_are_copied_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "STAGED_BYTES", 300)
    m = Model()
    pair = [m.y, m.x + 1]
    with gx.Session(device="emulated-gpu") as gpu, gx.Session() as cpu:
        for session in (gpu, cpu):
            session.run(m.init)
        for n in (1, 5, 40, 5, 40, 40, 5, 1):
            for a, b in zip(gpu.run(pair, m.fed(n)), cpu.run(pair, m.fed(n)), strict=True):
                np.testing.assert_array_equal(a, b)
            left = gpu.run(m.x + 1, m.fed(n), gx.RunOptions(on_device=True))
            np.testing.assert_array_equal(left.numpy(), m.fed(n)[m.x] + 1)


def test_a_network_learns_the_same_bits_as_on_the_cpu() -> None:
    random = np.random.default_rng(0)
    x = gx.placeholder("float32", [None, 8, 8, 1])
    t = gx.placeholder("int64", [None])
    filters = gx.Variable(0.3 * random.normal(size=(3, 3, 1, 4)).astype("f4"))
    weights = gx.Variable(0.1 * random.normal(size=(64, 10)).astype("f4"))
    h = gx.nn.max_pool(gx.nn.relu(gx.nn.conv2d(x, filters, padding="SAME")), 2, 2)
    logits = gx.reshape(h, [-1, 64]) @ weights
    loss = gx.mean(gx.nn.sparse_softmax_cross_entropy_with_logits(labels=t, logits=logits))
    step = gx.train.AdamOptimizer(0.01).minimize(loss)
    init = gx.global_variables_initializer()
    fed = {x: random.normal(size=(6, 8, 8, 1)).astype("f4"), t: np.arange(6)}
    seen = {}
    for device in ("cpu", "emulated-gpu"):
        with gx.Session(device=device) as session:
            session.run(init)
            losses = [session.run([loss, step], fed)[0] for _ in range(4)]
            seen[device] = [*losses, session.get_value(filters), session.get_value(weights)]
    for a, b in zip(*seen.values(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert losses[-1] < losses[0]


# ---- variables ---------------------------------------------------------------------------------


def test_a_failed_run_changes_nothing() -> None:
    x = gx.placeholder("int32", [None])
    w = gx.Variable(np.arange(4, dtype=np.float32))
    step = gx.assign(w, w + gx.gather(w, x)[0])
    with gx.Session(device="emulated-gpu") as session:
        session.run(gx.global_variables_initializer())
        for indices in ([1], [9], [-7], [1]):
            bad = not -4 <= indices[0] < 4
            before = session.get_value(w)
            if bad:
                with pytest.raises(gx.errors.IndexOutOfRangeError, match=str(indices[0])):
                    session.run(step, {x: indices})
            else:
                session.run(step, {x: indices})
            expected = before if bad else before + before[1]
            np.testing.assert_array_equal(session.get_value(w), expected)


def test_a_first_value_from_a_failed_run_is_none() -> None:
    x = gx.placeholder("int32", [None])
    w = gx.Variable(np.zeros(3, np.float32))
    first = gx.assign(w, gx.cast(gx.constant([1, 2, 3]) // x, "float32"))
    with gx.Session(device="emulated-gpu") as session:
        with pytest.raises(gx.errors.IntegerDivisionError):
            session.run(first, {x: [1, 0, 1]})
        assert not session.is_initialized(w)
        session.run(first, {x: [1, 1, 1]})
        np.testing.assert_array_equal(session.get_value(w), [1, 2, 3])


def test_sessions_on_one_device_have_variables_of_their_own() -> None:
    m = Model()
    with gx.Session(device="emulated-gpu") as a, gx.Session(device="emulated-gpu") as b:
        for session in (a, b):
            session.run(m.init)
        a.run(m.step)
        b.run(m.step)
        b.run(m.step)
        assert (a.get_value(m.w) > b.get_value(m.w)).all()


def test_a_program_of_the_host_sees_and_writes_what_is_on_the_device() -> None:
    """In one session a program runs on the GPU and another on the CPU, on the same variable."""
    w = gx.Variable(np.ones(3, np.float32))
    with gx.device("emulated-gpu"):
        there = gx.assign(w, 2 * w)
    here = gx.assign(w, w + 1)
    with gx.Session() as session:
        session.run(gx.global_variables_initializer())
        expected = np.ones(3, np.float32)
        for step in (there, here, here, there, there, here, there):
            session.run(step)
            expected = 2 * expected if step is there else expected + 1
            np.testing.assert_array_equal(session.run(w), expected)
        for _ in range(12):  # native entries must not take over what they would not see
            session.run(here)
            session.run(there)
            expected = 2 * (expected + 1)
        np.testing.assert_array_equal(session.get_value(w), expected)
        assert {p.device for p in session.placements()} == {"cpu", "emulated-gpu"}


def test_a_function_runs_where_its_session_does() -> None:
    x = gx.placeholder("float32", [None])
    total = gx.shared(np.zeros(3, np.float32))
    add = gx.function([x], 2 * x, updates=[(total, total + x)])
    with gx.Session(device="emulated-gpu") as session:
        for _ in range(3):
            np.testing.assert_array_equal(add(np.ones(3, np.float32)), [2, 2, 2])
        np.testing.assert_array_equal(total.get_value(), [3, 3, 3])
        assert [p.device for p in session.placements()][-1] == "emulated-gpu"
    add(np.ones(3, np.float32))  # in the graph's own session
    np.testing.assert_array_equal(total.get_value(), [1, 1, 1])


def test_checkpoints_hold_what_is_on_the_device(tmp_path: object) -> None:
    m = Model()
    saver = gx.train.Saver()
    with gx.Session(device="emulated-gpu") as session:
        session.run(m.init)
        session.run(m.step)
        path = saver.save(session, f"{tmp_path}/model")
        kept = session.get_value(m.w)
        session.run(m.step)
        saver.restore(session, path)
        np.testing.assert_array_equal(session.run(m.w), kept)
    with gx.Session() as session:
        saver.restore(session, path)
        np.testing.assert_array_equal(session.get_value(m.w), kept)


def test_a_closed_session_gives_its_memory_back(small_device: EmulatedDevice) -> None:
    m = Model()
    with gx.Session(device="emulated-gpu") as session:
        session.run(m.init)
        for n in (3, 5, 5):
            session.run(m.y, m.fed(n))
        kept = session.run(m.y, m.fed(3), gx.RunOptions(on_device=True))
        assert small_device.memory_info()[0] < small_device.capacity
    gc.collect()
    before = kept.numpy()
    del kept
    gx.Session(device="emulated-gpu").close()  # has run nothing: nothing is its to free
    with gx.Session(device="emulated-gpu") as session:
        session.run(m.init)
        np.testing.assert_array_equal(session.run(m.y, m.fed(3)), before)
    gc.collect()
    with gx.Session(device="emulated-gpu") as session:
        session.run(m.init)
    assert small_device.memory_info()[0] == small_device.capacity


def test_many_threads_share_a_session() -> None:
    m = Model()
    with gx.Session(device="emulated-gpu") as session, gx.Session() as cpu:
        session.run(m.init)
        cpu.run(m.init)
        expected = {n: cpu.run(m.y, m.fed(n)) for n in range(1, 5)}
        wrong: list[int] = []

        def work(n: int) -> None:
            for _ in range(6):
                if not np.array_equal(session.run(m.y, m.fed(n)), expected[n]):
                    wrong.append(n)

        threads = [threading.Thread(target=work, args=(1 + i % 4,)) for i in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert wrong == []


# ---- options -----------------------------------------------------------------------------------


def test_results_may_stay_on_the_device_and_be_fed_again() -> None:
    m = Model()
    options = gx.RunOptions(on_device=True)
    with gx.Session(device="emulated-gpu") as session:
        session.run(m.init)
        feed = m.fed(4)
        expected = session.run(m.y, feed)
        left = session.run(m.y, feed, options)
        assert isinstance(left, gx.DeviceArray)
        assert (left.shape, left.dtype, left.device) == ((4, 3, 5), "f4", "emulated-gpu")
        np.testing.assert_array_equal(left.numpy(), expected)
        np.testing.assert_array_equal(np.from_dlpack(left), expected)
        row = session.run(gx.reshape(m.x, [-1]), feed, options)
        again = gx.reshape(m.x, [4, 5]) + 1
        flat = session.run(again, {m.x: session.run(m.x * 1, feed, options)})
        np.testing.assert_array_equal(flat, feed[m.x] + 1)
        assert row.shape == (20,)
        for _ in range(4):  # recorded runs do not take one array for another
            a = session.run(m.x * 2, feed, options)
            b = session.run(m.x * 2, {m.x: a}, options)
            np.testing.assert_array_equal(b.numpy(), 4 * feed[m.x])
            np.testing.assert_array_equal(a.numpy(), 2 * feed[m.x])


def test_an_array_between_the_widest_loads_is_copied() -> None:
    x = gx.placeholder("float32", [None, 64])
    values = np.arange(4 * 64, dtype=np.float32).reshape(4, 64)
    with gx.Session(device="emulated-gpu") as session:
        there = session.run(x * 1, {x: values}, gx.RunOptions(on_device=True))
        for start in (0, 1, 2, 1, 1, 16, 0, 0):
            flat = (there.address + 4 * start, (3, 64), there.dtype, there.holder, there.owner)
            expected = values.reshape(-1)[start : start + 192].reshape(3, 64)
            found = session.run(gx.exp(-x), {x: gx.DeviceArray(*flat)})
            np.testing.assert_array_equal(found, session.run(gx.exp(-x), {x: expected}))


def test_on_device_needs_a_device() -> None:
    x = gx.placeholder("float32", [2])
    with gx.Session() as session, pytest.raises(gx.errors.GraphTypeError, match="on_device"):
        session.run(x + 1, {x: [1, 2]}, gx.RunOptions(on_device=True))


def test_a_trace_has_every_step() -> None:
    m = Model()
    trace = gx.Trace()
    with gx.Session(device="emulated-gpu") as session:
        session.run(m.init)
        session.run(m.y, m.fed(4), gx.RunOptions(trace=trace))
    assert trace.events
    assert all(e.seconds > 0 and e.bytes > 0 and e.kernel for e in trace.events)


def test_a_late_run_changes_nothing() -> None:
    m = Model()
    with gx.Session(device="emulated-gpu") as session:
        session.run(m.init)
        session.run(m.step)
        before = session.get_value(m.w)
        with pytest.raises(gx.errors.RunTimeoutError):
            session.run(m.step, options=gx.RunOptions(timeout=1e-9))
        np.testing.assert_array_equal(session.get_value(m.w), before)
        session.run(m.step, options=gx.RunOptions(timeout=60))
        assert (session.get_value(m.w) != before).all()


def test_the_nan_guard_names_the_operator() -> None:
    x = gx.placeholder("float32", [None])
    w = gx.Variable(np.ones(2, np.float32))
    step = gx.assign(w, gx.log(x) * w)
    with gx.Session(device="emulated-gpu", nan_guard=True) as session:
        session.run(gx.global_variables_initializer())
        session.run(step, {x: [2, 3]})
        before = session.get_value(w)
        with pytest.raises(gx.errors.NonFiniteError, match="log"):
            session.run(step, {x: [2, -3]})
        np.testing.assert_array_equal(session.get_value(w), before)


def test_python_functions_run_on_the_host_and_are_logged() -> None:
    x = gx.placeholder("float32", [3])
    doubled = gx.py_op(lambda a: 2 * a, [x + 1], "float32", [3])
    with gx.Session(device="emulated-gpu") as session:
        np.testing.assert_array_equal(session.run(doubled * 3, {x: [1, 2, 3]}), [12, 18, 24])
        assert {p.device for p in session.placements()} == {"cpu", "emulated-gpu"}


# ---- when memory runs out, or a kernel fails ---------------------------------------------------


def test_out_of_memory_names_the_largest_tensors(small_device: EmulatedDevice) -> None:
    x = gx.placeholder("float32", [None, 1000], name="pixels")
    w = gx.Variable(np.ones(1000, np.float32))
    y = gx.tanh(x * w)
    with gx.Session(device="emulated-gpu") as session:
        session.run(gx.global_variables_initializer())
        small = session.run(y, {x: np.ones((3, 1000))})
        with pytest.raises(gx.errors.OutOfMemoryError) as caught:
            session.run(y, {x: np.ones((4000, 1000))})
        assert isinstance(caught.value, MemoryError)
        assert "16.0 MB" in str(caught.value) or "16 MB" in str(caught.value)
        assert "pixels" in str(caught.value)
        np.testing.assert_array_equal(session.run(y, {x: np.ones((3, 1000))}), small)


def test_free_blocks_make_room(small_device: EmulatedDevice) -> None:
    x = gx.placeholder("float32", [None])
    with gx.Session(device="emulated-gpu") as session:
        for n in (10, 600_000, 300_000, 10, 650_000, 700_000):
            assert session.run(x + 1, {x: np.ones(n)}).sum() == 2 * n


def test_a_fault_while_variables_are_written_loses_only_those(
    small_device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = gx.Variable(np.ones(3, np.float32), name="a")
    b = gx.Variable(np.ones(3, np.float32), name="b")
    step = gx.assign(a, a + 1)
    with gx.Session(device="emulated-gpu") as session:
        session.run(gx.global_variables_initializer())
        session.run([step, gx.assign(b, b + 1)])
        session.run(step)
        launch = EmulatedKernel.launch

        def fault(*args: object, **options: object) -> None:
            raise EmulatorError("planted")

        monkeypatch.setattr(EmulatedKernel, "launch", fault)
        with pytest.raises(gx.errors.DeviceError, match="planted"):
            session.run(step)
        monkeypatch.setattr(EmulatedKernel, "launch", launch)
        with pytest.raises(gx.errors.UninitializedError, match="was lost when a run failed"):
            session.run(a)
        np.testing.assert_array_equal(session.run(b), [2, 2, 2])
        session.run(a.initializer)
        np.testing.assert_array_equal(session.run(a), [1, 1, 1])


# ---- placement ---------------------------------------------------------------------------------


def test_nodes_say_where_their_program_runs() -> None:
    x = gx.placeholder("float32", [2])
    with gx.device("emulated-gpu"):
        y = x * 2
        with gx.device(None):
            z = x + 1
    with gx.Session() as session:
        session.run(z, {x: [1, 2]})
        assert session.placements() == [
            gx.Placement(z.name.partition(":")[0], "cpu", "nothing in it was made for a device")
        ]
        np.testing.assert_array_equal(session.run(y + z, {x: [1, 2]}), [4, 7])
        assert session.placements()[-1].device == "emulated-gpu"


NO_GPU = "CUDA driver: libcuda.so.1 is not there (install one)"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "missing_for_gpu", lambda: NO_GPU)


def test_without_a_gpu_the_cpu_does_it_and_says_so(
    no_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    x = gx.placeholder("float32", [2])
    with gx.device("/gpu:0"):
        y = x * 2
    with gx.Session(log_device_placement=True) as session:
        np.testing.assert_array_equal(session.run(y, {x: [1, 2]}), [2, 4])
        (placement,) = session.placements()
    assert placement.device == "cpu"
    assert "was made for gpu:0, but" in placement.reason
    assert NO_GPU in placement.reason
    assert str(placement) in capsys.readouterr().err


def test_without_a_gpu_a_hard_placement_is_an_error(no_gpu: None) -> None:
    x = gx.placeholder("float32", [2])
    with gx.device("/gpu:0"):
        y = x * 2
    hard = gx.Session(allow_soft_placement=False)
    with hard, pytest.raises(gx.errors.DeviceError, match="cannot run on gpu:0"):
        hard.run(y, {x: [1, 2]})
    with pytest.raises(gx.errors.DeviceError, match="Session: gpu:1 cannot be used") as caught:
        gx.Session(device="gpu:1")
    assert NO_GPU in str(caught.value)


@pytest.mark.parametrize("name", ["gpus", "gpu:", "gpu:x", "/cpu:1", "", "cuda", 3])
def test_what_names_no_device_is_refused(name: str) -> None:
    with pytest.raises(gx.errors.GraphTypeError, match="device must be one of"):
        gx.Session(device=name)
    with pytest.raises(gx.errors.GraphTypeError, match="device must be one of"), gx.device(name):
        pass


def test_a_precision_is_one_of_three() -> None:
    with pytest.raises(gx.errors.GraphTypeError, match="precision is one of"):
        gx.Session(precision="f16")
