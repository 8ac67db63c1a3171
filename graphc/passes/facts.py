"""What is true of values and kernels in whatever order they come: worked out once each.

Imports: in_place, operands, estimate.
"""

from __future__ import annotations

from graphc.dims import DimLike
from graphc.kernel import Kernel
from graphc.passes.estimate import Estimate
from graphc.passes.in_place import may_share
from graphc.passes.operands import Value, value_bytes


class Facts:
    """Sizes of values, exact and estimated, and which arguments of a kernel may share memory."""

    def __init__(self, estimate: Estimate | None = None) -> None:
        self.estimate = estimate or Estimate()
        self._bytes: dict[int, tuple[DimLike, int, Value]] = {}
        self._shared: dict[tuple[int, int, int], tuple[bool, Kernel]] = {}

    def _sizes(self, value: Value) -> tuple[DimLike, int, Value]:
        found = self._bytes.get(id(value))
        if found is None:
            exact = value_bytes(value)
            found = self._bytes[id(value)] = (exact, self.estimate.of(exact), value)
        return found

    def exact_bytes(self, value: Value) -> DimLike:
        """Bytes of a value, in the named sizes."""
        return self._sizes(value)[0]

    def bytes(self, value: Value) -> int:
        """Bytes of a value, as estimated."""
        return self._sizes(value)[1]

    def may_share(self, kernel: Kernel, old: int, new: int) -> bool:
        """See `in_place.may_share`."""
        key = id(kernel), old, new
        found = self._shared.get(key)
        if found is None:
            found = self._shared[key] = (may_share(kernel, old, new), kernel)
        return found[0]
