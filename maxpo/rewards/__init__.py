"""Verifiers: pure functions from an answer's text and the reference to a reward.

They run in killable processes (`rollout/scoring/verifier_pool.py`), so this package imports nothing heavy.
A verifier judges any text, or raises UndecidedError where nobody can tell. A reference that makes no sense raises
ValueError. The arguments that can be given by name alone are settings (`reward.args`). `docs/verifiers.md` has a table.
"""

from maxpo.rewards.base import Score

__all__ = ["Score"]
