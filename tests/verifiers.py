"""Verifiers that misbehave on certain answers."""

from __future__ import annotations

import os
import time
from typing import Any

from maxpo.rewards import Score


def moody(text: str, reference: Any) -> Score:
    if text == "hang":
        while True:
            time.sleep(1)
    if text == "die":
        os._exit(3)
    if text == "raise":
        raise ValueError(text)
    return Score(reward=float(text == reference), parts={"length": float(len(text))})
