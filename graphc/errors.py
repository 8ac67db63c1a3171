"""Every exception graphc raises on purpose.

Each class also derives from the built-in exception a user of NumPy or TensorFlow would catch.
Imports: nothing.
"""

from __future__ import annotations


class GraphcError(Exception):
    """Base of all graphc errors."""


class ShapeError(GraphcError, ValueError):
    """Shapes that do not fit, found while building the graph or when sizes become known."""


class GraphTypeError(GraphcError, TypeError, ValueError):
    """A dtype, or a kind of argument, that an operator does not take."""


class GraphError(GraphcError, ValueError):
    """A tensor of another graph, an unknown or duplicate name, an ill-formed graph."""


class FinalizedError(GraphcError, RuntimeError):
    """Adding a node to a finalized graph."""


class GradientError(GraphcError, ValueError, TypeError):
    """A gradient that does not exist or was asked for in a way that has no meaning."""


class FeedError(GraphcError, ValueError):
    """A missing, unknown or misshapen feed."""


class FeedTypeError(FeedError, TypeError):
    """A feed whose value cannot be converted to the placeholder's dtype."""


class FetchError(GraphcError, ValueError, KeyError):
    """A fetch that names nothing in this graph."""

    __str__ = Exception.__str__


class FetchTypeError(GraphcError, TypeError):
    """A fetch that is neither a tensor, an operation, a name nor a structure of them."""


class UnusedInputError(GraphcError, ValueError):
    """`function` was given an input that no output depends on."""


class UninitializedError(GraphcError, RuntimeError):
    """Reading a variable that has no value in this session."""


class SessionClosedError(GraphcError, RuntimeError):
    """Using a session after `close`."""


class RunError(GraphcError, RuntimeError):
    """A fault found while running: the run changed nothing."""


class RunTimeoutError(RunError, TimeoutError):
    """A run that took longer than its `RunOptions.timeout`."""


class SizeError(RunError, MemoryError):
    """Sizes whose arrays no memory can hold."""


class MemoryBudgetError(GraphcError, MemoryError):
    """A program that cannot run within its memory budget: found before it runs."""


class DeviceError(GraphcError, RuntimeError):
    """A GPU that is not there or cannot be used, or that failed."""


class OutOfMemoryError(DeviceError, MemoryError):
    """A GPU's memory is too small for a run or a variable: nothing changed."""


class IndexOutOfRangeError(RunError, IndexError):
    """An index outside its axis, found while running."""


class IntegerDivisionError(RunError, ZeroDivisionError):
    """Integer division or remainder by zero, found while running."""


class AssertionFailedError(RunError, AssertionError):
    """A graph-level assertion failed."""


class NonFiniteError(RunError, ArithmeticError):
    """The NaN guard met a value that is not finite."""


class CheckpointError(GraphcError, ValueError, OSError):
    """A file that is truncated, tampered with, of another version or for another model."""

    __str__ = Exception.__str__


class VerifyError(GraphcError, AssertionError):
    """An ill-formed intermediate program: a bug in graphc, not in the user's code."""


class CompileError(GraphcError, RuntimeError):
    """Generated code that LLVM refused: a bug in graphc, not in the user's code."""


class GraphGrowthWarning(UserWarning):
    """A line that adds nodes to a graph again and again while the graph is being run."""


class MiscompiledError(GraphcError, AssertionError):
    """A debug run found a pass or kernel that computes something wrong: a bug in graphc."""
