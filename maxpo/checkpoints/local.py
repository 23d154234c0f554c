"""Checkpoint folders, verified by checksums and published by one rename.

    checkpoints/step_000040/   manifest.json  state.json  learner/  policy/ (optional)
    checkpoints/LATEST         the name of the newest checkpoint

A checkpoint is written under a name that nothing reads and flushed to disk. Its manifest lists size and sha256 of every
file. Then the folder is renamed, then LATEST is replaced, and old checkpoints are removed last. If a writer dies at any
point, the last good checkpoint is untouched. Only the copy of the learner's state must happen in the foreground.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from maxpo import __version__
from maxpo.checkpoints.manifest import FORMAT, MANIFEST, STATE, Manifest, describe, read_manifest, verify
from maxpo.errors import CheckpointError, RunError
from maxpo.files import hidden, put_in_place, remove, replacing, step_name, step_of, write_json
from maxpo.runtime.background import Background

LATEST = "LATEST"


class Remote(Protocol):
    """A store for copies of checkpoints, such as `maxpo.checkpoints.remote.RemoteStore`."""

    def steps(self) -> list[int]:
        """Return the steps that have a complete copy, ascending."""
        ...

    def upload(self, checkpoint: Path) -> None:
        """Copy a checkpoint to the store."""
        ...

    def download(self, step: int, folder: Path) -> Path:
        """Copy a checkpoint into `checkpoints/` of a run folder, verify the copy and return its folder."""
        ...

    def prune(self, keep: Collection[int]) -> None:
        """Remove all checkpoints except those of the steps in `keep`."""
        ...


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        keep_best: str | None = None,
        attached: Mapping[str, str | Path] | None = None,
        asynchronous: bool = False,
        remote: Remote | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Create the object. Nothing is written before the first `write`.

        Args:
            folder: `checkpoints/` of the run folder.
            keep_last: Number of newest checkpoints to keep, at least 1.
            keep_every: Also keep checkpoints whose step is a multiple of this number. 0 keeps no others.
            keep_best: Also keep the checkpoint with the highest value of this metric. None keeps no other.
            attached: Files to put into each checkpoint, by name: the text, or the path of a file that is copied if it
                exists.
            asynchronous: True if `write` returns once the state is copied, and the files are written in the background.
            remote: Store that receives a copy of each complete checkpoint. None if there is no store.
            say: Called with a line of text when a copy fails.
        """
        self.folder = folder
        self.saved_step = 0
        """Step of the newest complete checkpoint. 0 if none was written."""
        self.missing_copy: str | None = None
        """Reason why the newest checkpoint has no copy in the remote store. None if a copy or no store exists."""
        self._asynchronous, self._remote, self._say = asynchronous, remote, say
        self._failed_copies = 0
        self._writing: Background[None] | None = None
        self._finished: dict[str, float] = {}
        self._attached = dict(attached or {})
        self._keep_last, self._keep_every, self._keep_best = keep_last, keep_every, keep_best

    def write(
        self,
        step: int,
        state: Mapping[str, object],
        metrics: Mapping[str, float],
        fill: Callable[[Path], Callable[[], None]],
    ) -> None:
        """Write the checkpoint of `step`, once the write before has ended. An error leaves older checkpoints unchanged.

        Args:
            step: Number of training steps done.
            state: Plain JSON values.
            metrics: Metrics of this step, including the metric of `keep_best`.
            fill: Called with an empty folder. Copies all other state and returns a function that writes the copy to
                this folder.

        Raises:
            RunError: The disk is full, or the folder cannot be written. If the files are written in the background,
                the next call of `write`, `poll` or `wait` raises the error.
        """
        self._finish()
        partial = hidden(self.folder / step_name(step))
        with self._clear_errors(step, partial):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write_copy = fill(partial)

        def complete() -> None:
            with self._clear_errors(step, partial):
                write_copy()
                self._complete(step, partial, state, metrics)
            self._copy_to_remote(step, self._prune(step))

        if self._asynchronous:
            self._writing = Background(complete)
        else:
            complete()

    def poll(self) -> dict[str, float]:
        """Return metrics of the background write that has ended since the last call. Do not wait.

        Raises:
            RunError: The write failed.
        """
        if self._writing is not None and self._writing.done:
            self._finish()
        finished, self._finished = self._finished, {}
        return finished | ({"checkpoint/copies_failed": float(self._failed_copies)} if self._remote else {})

    def wait(self) -> dict[str, float]:
        """Wait for the write in the background, then return the metrics of `poll`."""
        self._finish()
        return self.poll()

    def _finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
            self._finished = {"time/checkpoint_write_s": writing.seconds}

    def abandon(self, timeout_s: float | None = None) -> None:
        """Wait at most `timeout_s` seconds for the background write, then forget the write, whatever its outcome."""
        if self._writing is not None:
            self._writing.wait(timeout_s)
            self._writing = None

    @contextmanager
    def _clear_errors(self, step: int, partial: Path) -> Generator[None]:
        try:
            yield
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            raise RunError(f"the checkpoint of step {step} could not be written to {self.folder}: {error}") from error

    def _complete(self, step: int, partial: Path, state: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """Complete a folder with the learner's files to a checkpoint, and publish it."""
        final = self.folder / step_name(step)
        for name, content in self._attached.items():
            if isinstance(content, str):
                (partial / name).write_text(content, encoding="utf-8")
            elif content.exists():
                shutil.copyfile(content, partial / name)
        write_json(partial / STATE, state)
        files = {str(p.relative_to(partial)): describe(p) for p in sorted(partial.rglob("*")) if p.is_file()}
        manifest = Manifest(format=FORMAT, maxpo=__version__, step=step, metrics=dict(metrics), files=files)
        write_json(partial / MANIFEST, manifest)
        # A checkpoint of the same step may exist, written before a resume from an earlier step.
        put_in_place(partial, final)
        with replacing(self.folder / LATEST) as pointer:
            pointer.write_text(final.name + "\n", encoding="utf-8")
        self.saved_step = step

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint under its final name, ascending."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(step for name in names if (step := step_of(name)) is not None)

    def has(self, checkpoint: Path) -> bool:
        """Return True if a folder is one of these checkpoints, whatever links lead to it."""
        own = [self.folder / step_name(step) for step in self.steps()]
        return any(folder.exists() and folder.samefile(checkpoint) for folder in own)

    def good_after(self, step: int) -> list[int]:
        """Return later steps that only the remote store has, and the newest good local step if it is later, ascending.

        Raises:
            RunError: The store cannot be read.
        """
        here, there = self.steps(), self._remote.steps() if self._remote else []
        good, _ = self.newest_good()
        only_there = {s for s in there if s not in here}
        return sorted(s for s in only_there | {step_of(good.name) if good else None} if s is not None and s > step)

    def newest_good(self, *, fetch: bool = False) -> tuple[Path | None, list[str]]:
        """Return the newest checkpoint that passes verification, and the errors of newer checkpoints.

        Args:
            fetch: True to look into the remote store too, and to copy a checkpoint that is missing or damaged here.

        Raises:
            RunError: The store cannot be read.
        """
        wrong: list[str] = []
        here, there = self.steps(), self._remote.steps() if fetch and self._remote else []
        for step in sorted({*here, *there}, reverse=True):
            folder = self.folder / step_name(step)
            try:
                if step in here:
                    verify(folder)
                    return folder, wrong
            except CheckpointError as error:
                wrong.append(str(error))
            try:
                if step in there and self._remote:
                    return self._remote.download(step, self.folder), wrong[:-1] if step in here else wrong
            except CheckpointError as error:
                wrong.append(str(error))
        return None, wrong

    def _copy_to_remote(self, step: int, removed: set[int]) -> None:
        """Copy a checkpoint to the remote store, and remove from the store the steps that were removed here.

        The local checkpoint is complete, so an error is reported and counted, not raised. The next copy may succeed.
        """
        if self._remote is None:
            return
        try:
            self._remote.upload(self.folder / step_name(step))
            self._remote.prune(set(self._remote.steps()) - removed)
            self.missing_copy = None
        except RunError as error:
            self.missing_copy = str(error)
            self._failed_copies += 1
            self._say(f"the checkpoint of step {step} has no copy: {error}")

    def _prune(self, written: int) -> set[int]:
        """Remove the checkpoints that no rule keeps, and return their steps."""
        steps = self.steps()
        keep = {written, *steps[-self._keep_last :]}
        if self._keep_every:
            keep |= {step for step in steps if step % self._keep_every == 0}
        if self._keep_best:
            values = {step: self._metric(step, self._keep_best) for step in steps}
            known = {step: value for step, value in values.items() if value is not None}
            if known:
                keep.add(max(known, key=lambda step: (known[step], step)))
        removed = set(steps) - keep
        for step in removed:
            remove(self.folder / step_name(step))
        return removed

    def newest_written(self) -> Path | None:
        """Return the newest checkpoint with a readable manifest. Its files are not read, because this may take long."""
        for step in reversed(self.steps()):
            folder = self.folder / step_name(step)
            with suppress(CheckpointError):
                read_manifest(folder)
                return folder
        return None

    def set_aside(self, newer_than: int) -> list[Path]:
        """Rename the checkpoints of later steps, which are damaged, so that none counts as newest. Return the paths."""
        moved: list[Path] = []
        for step in self.steps():
            if step > newer_than:
                target = self.folder / step_name(step, "damaged")
                remove(target)
                moved.append((self.folder / step_name(step)).rename(target))
        return moved

    def _metric(self, step: int, name: str) -> float | None:
        try:
            return read_manifest(self.folder / step_name(step))["metrics"].get(name)
        except CheckpointError:
            return None
