"""The weight of L2O in `interpolated` that earlier probes found best. Pure Python."""

from __future__ import annotations

from typing_extensions import TypedDict

KEPT = 0.9
"""Factor on earlier probes at each new one. Earlier probes lose weight because the policy changes."""


class LamState(TypedDict):
    """Sums of `AdaptiveLam` as JSON values."""

    along: float
    apart: float


class AdaptiveLam:
    """lam* = -E<g, d> / E|d|^2 of `interpolated`, from the probes of earlier steps, within 0 .. 1.

    g is the gradient of `pkpo_loo_minus_one`, and d that of `maxpo` minus g (docs/theory.md, T8). A lam must not depend
    on the rewards of the groups for which it is used, or the estimate would be biased. So read it before a step, and
    call `observe` after.
    """

    def __init__(self) -> None:
        self._along = self._apart = 0.0

    def __call__(self) -> float | None:
        """Return lam. None before the first probe."""
        return min(1.0, max(0.0, -self._along / self._apart)) if self._apart > 0 else None

    def observe(self, along: float, apart: float) -> None:
        """Add the mean <g, d> and |d|^2 of a probe."""
        self._along, self._apart = KEPT * self._along + along, KEPT * self._apart + apart

    def state_dict(self) -> LamState:
        """Return the sums as plain JSON values."""
        return {"along": self._along, "apart": self._apart}

    def load_state_dict(self, state: LamState) -> None:
        """Restore the sums that `state_dict` returned."""
        self._along, self._apart = state["along"], state["apart"]
