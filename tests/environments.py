"""An environment for the tests of its processes."""

from __future__ import annotations

import os
import time
from typing import Any

from maxpo.environments import Step


class Moody:
    """Does what a turn says, and counts its steps."""

    def __init__(self, *, start: int = 0) -> None:
        self.steps = start

    def reset(self, prompt: str, reference: Any, seed: int) -> None:
        self.reference, self.seed = reference, seed
        self.do(prompt)

    def step(self, completion: str) -> Step:
        self.steps += 1
        self.do(completion)
        if completion == "odd":
            return "no step"  # type: ignore[return-value]
        return Step(observation=f"{self.reference}/{self.seed}/{self.steps}", parts={"pid": float(os.getpid())})

    def do(self, text: str) -> None:
        if text == "hang":
            time.sleep(3600)
        if text == "die":
            os._exit(3)
        if text == "raise":
            raise KeyError(text)
