"""Logs of a run. `metrics.jsonl` is the source of truth, and TensorBoard files are derived from this file."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maxpo.files import clear_errors, replacing
from maxpo.tracking.metrics import check_names
from maxpo.types import ScoredGroup

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Log that appends metrics and samples to a run folder."""

    def __init__(self, folder: Path, *, tensorboard: bool, save_rollouts: int, resumed_step: int | None = None) -> None:
        """Open the existing folder of a run.

        Args:
            folder: Run folder.
            tensorboard: True to write TensorBoard files too.
            save_rollouts: Number of groups per step whose completions are written.
            resumed_step: Last step to keep. Lines of later steps and an incomplete last line are removed. None for a
                new folder.
        """
        self._metrics = folder / METRICS_FILE
        self._rollouts = folder / "rollouts"
        self._save_rollouts = save_rollouts
        self._fed = 0
        if resumed_step is not None:
            self._cut_after(resumed_step)
        self._board: Any = None  # tensorboardX has no types
        if tensorboard:
            from tensorboardX import SummaryWriter  # pyright: ignore

            purge = None if resumed_step is None else resumed_step + 1
            self._board = SummaryWriter(str(folder / "tensorboard"), flush_secs=10, purge_step=purge)

    def _cut_after(self, step: int) -> None:
        """Remove the lines of later steps and incomplete lines from `metrics.jsonl`."""
        kept = b""
        for line in self._metrics.read_bytes().splitlines(keepends=True) if self._metrics.exists() else ():
            try:
                row: dict[str, float] = json.loads(line)
            except ValueError:
                continue
            if row["step"] <= step and line.endswith(b"\n"):
                kept += line
        with clear_errors(self._metrics), replacing(self._metrics) as partial:
            partial.write_bytes(kept)
        self._fed = len(kept)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line of metrics.

        Raises:
            KeyError: A metric is not documented in `maxpo.tracking.metrics`.
            RunError: The file cannot be written.
        """
        check_names(list(metrics))
        line = json.dumps({"step": step, "time": round(time.time(), 3)} | dict(metrics))
        with clear_errors(self._metrics), self._metrics.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._feed()

    def log_rollouts(self, name: str, groups: Sequence[ScoredGroup], numbers: Sequence[int] = ()) -> None:
        """Write the completions of the first `save_rollouts` groups to `rollouts/<name>.jsonl`.

        Args:
            name: Name of the file.
            groups: The groups.
            numbers: For each group its position in the order of admission. Nothing: they have none.
        """
        if self._save_rollouts:
            self.dump(name, groups[: self._save_rollouts], numbers)

    def dump(self, name: str, groups: Sequence[ScoredGroup], numbers: Sequence[int] = ()) -> Path:
        """Write the completions of all groups, one per line, and return the path. `numbers`: see `log_rollouts`."""
        path = self._rollouts / f"{name}.jsonl"
        with clear_errors(path):
            self._rollouts.mkdir(exist_ok=True)
        with clear_errors(path), path.open("w", encoding="utf-8") as file:
            for i, scored in enumerate(groups):
                number: dict[str, object] = {"group": numbers[i]} if numbers else {}
                for row in _rows(scored):
                    file.write(json.dumps(number | row, ensure_ascii=False) + "\n")
        return path

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._board is not None:
            self._board.close()

    def _feed(self) -> None:
        """Write the lines of `metrics.jsonl` to TensorBoard that are not in TensorBoard yet."""
        if self._board is None:
            return
        with self._metrics.open("rb") as file:
            file.seek(self._fed)
            for raw in file:
                row: dict[str, float] = json.loads(raw)
                step, when = row.pop("step"), row.pop("time")
                for name, value in row.items():
                    self._board.add_scalar(name, value, step, walltime=when)
            self._fed = file.tell()


def _rows(scored: ScoredGroup) -> list[dict[str, object]]:
    prompt = scored.group.prompt
    return [
        {
            "prompt_id": prompt.prompt_id,
            "prompt": prompt.text,
            "completion": completion.text,
            "reward": scored.rewards[i] if scored.valid[i] else None,
            "success": scored.successes[i] if scored.valid[i] else None,
            "outcome": scored.outcomes[i],
            "parts": {name: values[i] for name, values in scored.reward_parts.items()},
            "tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "turns": 1 if completion.episode is None else completion.episode.turns,
            "weight_version": [completion.min_weight_version, completion.max_weight_version],
        }
        for i, completion in enumerate(scored.group.completions)
    ]
