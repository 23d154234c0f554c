"""Checkpoint folders: written beside, verified by checksums, and put in place by one rename.

    checkpoints/step_000040/   manifest.json  state.json  learner/  policy/ (where wanted)
    checkpoints/LATEST         the name of the newest one

A checkpoint is written under a name that nothing reads, flushed to disk, listed in its manifest with size and sha256
of every file, and renamed; then LATEST is replaced; only then are old ones removed. Whenever a writer dies, the last
good checkpoint is untouched. All but the copy of the learner's state may happen in the background.
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
from maxpo.files import hidden, put_in_place, replacing, step_name, step_of, write_json
from maxpo.runtime.background import Background

LATEST = "LATEST"


class Remote(Protocol):
    """A place for copies, see `maxpo.checkpoints.remote.RemoteStore`."""

    def steps(self) -> list[int]:
        """Steps that have a whole copy, ascending."""
        ...

    def upload(self, checkpoint: Path) -> None:
        """Copy a checkpoint there."""
        ...

    def download(self, step: int, folder: Path) -> Path:
        """Copy one back into `checkpoints/` of a run folder; returns it, verified."""
        ...

    def prune(self, keep: Collection[int]) -> None:
        """Remove the others."""
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
        """Nothing is written before the first `write`.

        Args:
            folder: `checkpoints/` of the run folder.
            keep_last: newest checkpoints to keep, at least 1.
            keep_every: also keep those whose step is a multiple of this; 0: none.
            keep_best: also keep the one with the highest value of this metric; None: none.
            attached: files to put into each checkpoint, by name: their text, or a file to copy where it exists.
            asynchronous: `write` returns when the state is copied; the files are written in the background.
            remote: where each checkpoint is copied to once it is complete; None: nowhere.
            say: called with a line when a copy fails.
        """
        self.folder = folder
        self.saved_step = 0
        """Step of the newest checkpoint that is complete, 0 where none was written."""
        self.missing_copy: str | None = None
        """Why the newest checkpoint has no copy in the remote store; None where it has one, or there is no store."""
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
        """Write the checkpoint of `step`, after the one before. After an error the older ones are as they were.

        Args:
            step: training steps done.
            state: plain JSON values.
            metrics: of this step; `keep_best` looks its metric up here.
            fill: called with an empty folder, takes a copy of everything else; what it returns writes that there.

        Raises:
            RunError: the disk is full, or the folder cannot be written; where the files are written in the
                background, from the next call of any method.
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
        """Metrics of the last write in the background that has ended since the last call; does not wait.

        Raises:
            RunError: it failed.
        """
        if self._writing is not None and self._writing.done:
            self._finish()
        finished, self._finished = self._finished, {}
        return finished | ({"checkpoint/copies_failed": float(self._failed_copies)} if self._remote else {})

    def wait(self) -> dict[str, float]:
        """The same, after waiting for the write in the background."""
        self._finish()
        return self.poll()

    def _finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
            self._finished = {"time/checkpoint_write_s": writing.seconds}

    def abandon(self, timeout_s: float | None = None) -> None:
        """Wait for the write in the background, at most `timeout_s` seconds, and forget it, done, failed or not."""
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
        """From a folder with the learner's files to a checkpoint."""
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
        # There may be an old one of the same step, written before a resume from an earlier step.
        put_in_place(partial, final)
        with replacing(self.folder / LATEST) as pointer:
            pointer.write_text(final.name + "\n", encoding="utf-8")
        self.saved_step = step

    def steps(self) -> list[int]:
        """Steps that have a checkpoint under its final name, ascending."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(step for name in names if (step := step_of(name)) is not None)

    def good_after(self, step: int) -> list[int]:
        """Later steps whose checkpoint is good here, or is only in the remote store.

        Raises:
            RunError: the store cannot be read.
        """
        here, there = self.steps(), self._remote.steps() if self._remote else []
        good, _ = self.newest_good()
        only_there = {s for s in there if s not in here}
        return sorted(s for s in only_there | {step_of(good.name) if good else None} if s is not None and s > step)

    def newest_good(self, *, fetch: bool = False) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that verifies, and what is wrong with the newer ones.

        Args:
            fetch: also look into the remote store, and copy from there what is missing or damaged here.

        Raises:
            RunError: the store cannot be read.
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
        """Copy a checkpoint, and remove there what was removed here.

        The checkpoint itself is complete, so an error is told and counted, and the next one may come through.
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
        """Remove what is not to be kept; returns the steps removed."""
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
            shutil.rmtree(self.folder / step_name(step), ignore_errors=True)
        return removed

    def newest_written(self) -> Path | None:
        """The newest checkpoint with a readable manifest; its files are not read, which may take long."""
        for step in reversed(self.steps()):
            folder = self.folder / step_name(step)
            with suppress(CheckpointError):
                read_manifest(folder)
                return folder
        return None

    def set_aside(self, newer_than: int) -> list[Path]:
        """Rename the checkpoints of later steps, which are damaged, so that nothing takes them for the newest."""
        moved: list[Path] = []
        for step in self.steps():
            if step > newer_than:
                target = self.folder / step_name(step, "damaged")
                shutil.rmtree(target, ignore_errors=True)
                moved.append((self.folder / step_name(step)).rename(target))
        return moved

    def _metric(self, step: int, name: str) -> float | None:
        try:
            return read_manifest(self.folder / step_name(step))["metrics"].get(name)
        except CheckpointError:
            return None
