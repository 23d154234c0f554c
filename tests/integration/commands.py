"""The command `maxpo` for tests: in a process of its own as a user types it, or in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.cli import main

MAXPO = str(Path(sys.executable).with_name("maxpo"))
SMALL = [
    "run.steps=6",
    "eval.prompts=48",
    "eval.samples=16",
    "eval.every=2",
    "eval.greedy=true",
    "algorithm.prompts_per_step=8",
    "data.train_size=100",
    "rollout.max_concurrent_sequences=128",
]
"""Settings that shorten the demo."""


def environment() -> dict[str, str]:
    """Return the environment without the Ray settings of this process, because the command makes its own."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"COLUMNS": "120"}


def maxpo(*args: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own to its end."""
    return subprocess.run([MAXPO, *args], capture_output=True, text=True, timeout=timeout, env=environment())


def training(folder: Path) -> list[str]:
    """Return the words of a short training into `folder/run` that uses most of the state that a checkpoint holds."""
    more = ["checkpoint.every=1", "algorithm.k_schedule=adaptive", "algorithm.k_values=[1,6]"]
    more += ["algorithm.mix_with=interpolated", "algorithm.lam=adaptive"]
    more += ["algorithm.probe_every=2", "algorithm.probe_groups=2"]
    return ["train", "configs/presets/demo.yaml", f"run.dir={folder}", "run.name=run", *SMALL, *more]


@dataclass(frozen=True)
class Printed:
    """Exit code and output of a command in this process, named as in `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class InProcess:
    """Runs the command in this process, which saves the seconds of its imports."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *args: str) -> Printed:
        self.capsys.readouterr()
        code = main(args)
        return Printed(code, *self.capsys.readouterr())
