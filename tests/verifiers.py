"""Custom rewards, some of which misbehave on certain answers."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any


def moody(prompt: str, text: str, reference: Any) -> dict[str, float]:
    if text == "hang":
        while True:
            time.sleep(1)
    if text == "die":
        os._exit(3)
    if text == "raise":
        raise KeyError(text)
    return {"right": float(text == reference), "short": 0.0 if len(text) > 3 else 0.25}


async def slow(prompt: str, text: str, reference: Any) -> float:
    await asyncio.sleep(0.01)
    return 0.5 if text == reference and prompt == "p" else -1.0


def wrong_type(prompt: str, text: str, reference: Any) -> str:
    return "good"


def counted(prompt: str, text: str, reference: Any) -> float:
    with Path(os.environ["MAXPO_TRIED"]).open("a") as file:
        file.write(f"{text}\n")
    if text == "hang":
        time.sleep(600)
    if text == "die" or (text == "die once" and Path(os.environ["MAXPO_TRIED"]).read_text().count(text) == 1):
        os._exit(3)
    return 1.0


def empty(prompt: str, text: str, reference: Any) -> float:
    return float(text.split()[9] == reference)


def two(prompt: str, text: str) -> float:
    return 1.0


def four(prompt: str, text: str, reference: Any, letter: str) -> float:
    return 1.0


class Judge:
    """A class, which is no verifier."""

    def __init__(self, prompt: str, text: str, reference: Any) -> None: ...


def secret(prompt: str, text: str, reference: Any) -> float:
    return float("RAY_AUTH_TOKEN" in os.environ)


def starts(prompt: str, text: str, reference: Any, letter: str = "y") -> float:
    return float(text.startswith(letter))
