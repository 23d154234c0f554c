"""The verifier `length`: a soft penalty for long answers, as DAPO's (arXiv 2503.14476)."""

from __future__ import annotations

from maxpo.rewards.base import Score

CAP = 20000
"""As `reward.max_chars`."""


def length(text: str, reference: object, *, start: int = 16000, cap: int = CAP) -> Score:
    """Reward 0 up to `start` characters, then falling in a straight line to -1 at `cap`, and -1 beyond.

    DAPO counts tokens. A verifier sees text alone, and a tokenizer in every verifier process would make a reward
    depend on the model: so these are characters. Divide by the characters per token of your answers (English text
    has about four) to compare with `rollout.max_new_tokens`, and keep `cap` below where that cuts.

    Args:
        text: Any text.
        reference: Not used.
        start: Characters that cost nothing.
        cap: Characters that cost everything; at most `reward.max_chars`, beyond which nothing is read.
    """
    return Score(reward=0.0 - min(1.0, max(0, len(text) - start) / (cap - start)))  # 0.0, not -0.0
