"""The factor on the loss that keeps small gradients within the range of float16."""

from __future__ import annotations

FIRST = 2.0**16
SMALLEST, LARGEST = 1.0, 2.0**24
PATIENCE = 100
"""Steps in a row without an overflow after which the scale doubles. Training steps are few and long in this framework,
so the scale recovers ten times faster than with DeepSpeed's default."""


class LossScale:
    """A dynamic loss scale: halved by each overflow, doubled after `PATIENCE` steps without one.

    DeepSpeed's own one is not used. Version 0.19.8 doubles the scale before it divides the gradients by the scale, so
    the gradient of that step is halved.
    """

    def __init__(self) -> None:
        """Begin with the scale `FIRST`."""
        self.value = FIRST
        self._steps = 0

    def taken(self) -> None:
        """Count a step without an overflow."""
        self._steps += 1
        if self._steps == PATIENCE:
            self.value, self._steps = min(2 * self.value, LARGEST), 0

    def lower(self) -> bool:
        """Halve the scale after an overflow. Return False if the scale is at its minimum already."""
        if self.value <= SMALLEST:
            return False
        self.value, self._steps = max(self.value / 2, SMALLEST), 0
        return True

    def state(self) -> list[float]:
        """Return scale and steps since its last change, for a checkpoint."""
        return [self.value, float(self._steps)]

    def restore(self, state: list[float]) -> None:
        """Continue from a `state`."""
        self.value, self._steps = state[0], int(state[1])
