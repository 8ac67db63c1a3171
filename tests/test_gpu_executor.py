"""Programs on a GPU, on the device that the emulator stands for: values, variables, failures."""

from __future__ import annotations

import numpy as np

import graphc as gx


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
        assert len(session.compiled()) == 2  # of the initializer and of y


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
