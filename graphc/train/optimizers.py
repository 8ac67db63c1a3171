"""The optimizers, each with the update rule and defaults of TensorFlow 1.

In the formulas v is the variable, g its gradient, and r its learning rate times lr_mult.
Imports: train.optimizer, ops, graph.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.errors import GraphTypeError
from graphc.node import Tensor
from graphc.ops.arithmetic import astype
from graphc.ops.define import constant
from graphc.ops.math import rsqrt, sqrt, square
from graphc.ops.state import Variable
from graphc.train.optimizer import LearningRate, Optimizer
from graphc.types import float64

# ---- gradient descent --------------------------------------------------------------------------


class SGD(Optimizer):
    """Gradient descent: v -= r * g."""

    def __init__(self, learning_rate: LearningRate, name: str = "SGD") -> None:
        super().__init__(learning_rate, name)

    def update(self, g: Tensor, v: Variable, rate: Tensor) -> list[Tensor]:
        return [v.assign_sub(rate * g)]


# ---- momentum ----------------------------------------------------------------------------------


class Momentum(Optimizer):
    """a = momentum * a + g; v -= r * a (Polyak, 1964).

    nesterov: v -= r * (g + momentum * a) with the new a (Sutskever et al., 2013).
    """

    def __init__(
        self,
        learning_rate: LearningRate,
        momentum: float = 0.9,
        nesterov: bool = False,
        name: str = "Momentum",
    ) -> None:
        super().__init__(learning_rate, name)
        self.momentum = momentum
        self.nesterov = nesterov

    def create_slots(self, variables: Sequence[Variable]) -> None:
        for v in variables:
            self.slot(v, "Momentum")

    def update(self, g: Tensor, v: Variable, rate: Tensor) -> list[Tensor]:
        state = self.slot(v, "Momentum")
        a = self.momentum * state.current() + g
        step = g + self.momentum * a if self.nesterov else a
        return [state.assign(a), v.assign_sub(rate * step)]


# ---- AdaGrad -----------------------------------------------------------------------------------


class AdaGrad(Optimizer):
    """a += g²; v -= r * g / sqrt(a) (Duchi, Hazan and Singer, 2011)."""

    def __init__(
        self,
        learning_rate: LearningRate,
        initial_accumulator_value: float = 0.1,
        name: str = "AdaGrad",
    ) -> None:
        super().__init__(learning_rate, name)
        if initial_accumulator_value <= 0:
            raise GraphTypeError("AdaGrad: initial_accumulator_value must be positive")
        self.initial_accumulator_value = initial_accumulator_value

    def create_slots(self, variables: Sequence[Variable]) -> None:
        for v in variables:
            self.slot(v, "Adagrad", self.initial_accumulator_value)

    def update(self, g: Tensor, v: Variable, rate: Tensor) -> list[Tensor]:
        state = self.slot(v, "Adagrad")
        a = state.current() + square(g)
        return [state.assign(a), v.assign_sub(rate * g / sqrt(a))]


# ---- AdaDelta ----------------------------------------------------------------------------------


class AdaDelta(Optimizer):
    """a = rho * a + (1 - rho) * g²; d = g * sqrt(b + epsilon) / sqrt(a + epsilon);
    b = rho * b + (1 - rho) * d²; v -= r * d (Zeiler, 2012).
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        rho: float = 0.95,
        epsilon: float = 1e-8,
        name: str = "AdaDelta",
    ) -> None:
        super().__init__(learning_rate, name)
        self.rho = rho
        self.epsilon = epsilon

    def create_slots(self, variables: Sequence[Variable]) -> None:
        for v in variables:
            self.slot(v, "accum")
            self.slot(v, "accum_update")

    def update(self, g: Tensor, v: Variable, rate: Tensor) -> list[Tensor]:
        squares, steps = self.slot(v, "accum"), self.slot(v, "accum_update")
        a = self.rho * squares.current() + (1 - self.rho) * square(g)
        before = steps.current()
        d = g * sqrt(before + self.epsilon) * rsqrt(a + self.epsilon)
        b = self.rho * before + (1 - self.rho) * square(d)
        return [squares.assign(a), steps.assign(b), v.assign_sub(rate * d)]


# ---- RMSProp -----------------------------------------------------------------------------------


class RMSProp(Optimizer):
    """s = decay * s + (1 - decay) * g²; m = momentum * m + r * g / sqrt(s + epsilon); v -= m.

    (Tieleman and Hinton, 2012.)  s starts at one.  centered: s is reduced by the square of a
    running mean of g (Graves, 2013).
    """

    def __init__(
        self,
        learning_rate: LearningRate,
        decay: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-10,
        centered: bool = False,
        name: str = "RMSProp",
    ) -> None:
        super().__init__(learning_rate, name)
        self.decay = decay
        self.momentum = momentum
        self.epsilon = epsilon
        self.centered = centered

    def create_slots(self, variables: Sequence[Variable]) -> None:
        for v in variables:
            self.slot(v, "RMSProp", 1.0)
            if self.momentum:
                self.slot(v, "Momentum")
            if self.centered:
                self.slot(v, "RMSPropMean")

    def update(self, g: Tensor, v: Variable, rate: Tensor) -> list[Tensor]:
        squares = self.slot(v, "RMSProp")
        s = self.decay * squares.current() + (1 - self.decay) * square(g)
        updates = [squares.assign(s)]
        spread = s
        if self.centered:
            means = self.slot(v, "RMSPropMean")
            mean = self.decay * means.current() + (1 - self.decay) * g
            updates.append(means.assign(mean))
            spread = s - square(mean)
        step = rate * g * rsqrt(spread + self.epsilon)
        if self.momentum:
            moments = self.slot(v, "Momentum")
            step = self.momentum * moments.current() + step
            updates.append(moments.assign(step))
        return [*updates, v.assign_sub(step)]


# ---- Adam --------------------------------------------------------------------------------------


class Adam(Optimizer):
    """m = beta1 * m + (1 - beta1) * g; s = beta2 * s + (1 - beta2) * g²;
    v -= r * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(s) + epsilon) (Kingma and Ba, 2015).

    epsilon is the paper's "epsilon hat", added before the bias correction.  The powers of beta are
    float64: in float32, 1 - beta2 would lose four digits.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        name: str = "Adam",
    ) -> None:
        super().__init__(learning_rate, name)
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self._powers: list[Variable] = []
        self._correction: Tensor | None = None

    def create_slots(self, variables: Sequence[Variable]) -> None:
        if not self._powers or self._powers[0].graph is not variables[0].graph:
            self._powers = []
            for beta, label in ((self.beta1, "beta1_power"), (self.beta2, "beta2_power")):
                power = Variable(constant(beta, float64), name=label, trainable=False)
                self._powers.append(power)
        for v in variables:
            self.slot(v, "Adam")
            self.slot(v, "Adam_1")

    def variables(self) -> list[Variable]:
        return [*super().variables(), *self._powers]

    def prepare(self, variables: Sequence[Variable]) -> list[Tensor]:
        first, second = (p.current() for p in self._powers)
        self._correction = sqrt(1.0 - second) / (1.0 - first)
        return [
            self._powers[0].assign(first * self.beta1),
            self._powers[1].assign(second * self.beta2),
        ]

    def update(self, g: Tensor, v: Variable, rate: Tensor) -> list[Tensor]:
        means, squares = self.slot(v, "Adam"), self.slot(v, "Adam_1")
        assert self._correction is not None
        step = rate * astype(self._correction, v.dtype)
        m = self.beta1 * means.current() + (1 - self.beta1) * g
        s = self.beta2 * squares.current() + (1 - self.beta2) * square(g)
        moved = step * m / (sqrt(s) + self.epsilon)
        return [means.assign(m), squares.assign(s), v.assign_sub(moved)]


GradientDescentOptimizer = SGD
MomentumOptimizer = Momentum
AdagradOptimizer = AdaGrad
AdadeltaOptimizer = AdaDelta
RMSPropOptimizer = RMSProp
AdamOptimizer = Adam

__all__ = [
    "SGD",
    "AdaDelta",
    "AdaGrad",
    "AdadeltaOptimizer",
    "AdagradOptimizer",
    "Adam",
    "AdamOptimizer",
    "GradientDescentOptimizer",
    "Momentum",
    "MomentumOptimizer",
    "RMSProp",
    "RMSPropOptimizer",
]
