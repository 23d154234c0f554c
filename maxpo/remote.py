"""A copy of checkpoints in a bucket or any other place that fsspec reaches, where nothing can be renamed in one go.

    URL/step_000040/   the files of the checkpoint, manifest.json, and COMMIT, written last
    URL/LATEST         the name of the one uploaded last; for people, nothing here reads it

A checkpoint is there if its COMMIT matches its manifest. Uploads write COMMIT after everything else and removals take
it away first, so whenever either dies, what is half there is not seen and the other checkpoints are untouched.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from maxpo.checkpoint import LATEST, MANIFEST, CheckpointError, verify
from maxpo.errors import InputError, RunError

COMMIT = "COMMIT"
WAITS_S = (1.0, 4.0)
"""Seconds before the second and the third try of an operation."""
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_T = TypeVar("_T")


class RemoteStoreError(RunError):
    """The remote place failed; the message names its URL, what was being done and the cause."""


class RemoteStore:
    """The checkpoints below one URL. One process at a time may change them."""

    def __init__(self, url: str, options: Mapping[str, Any], *, wait: Callable[[float], None] = time.sleep) -> None:
        """Nothing is written, and with most drivers nothing is connected to, before the first operation.

        Args:
            url: protocol://bucket/prefix, as fsspec understands it; the bucket must exist.
            options: for the driver of this protocol, e.g. endpoint_url, key and secret of s3fs.
            wait: called with the seconds to wait before an operation is tried again.

        Raises:
            InputError: the URL or the options cannot be used, or the driver is not installed.
        """
        self.url = url.rstrip("/")
        self._wait = wait
        named = f"checkpoint.remote: {url!r}"
        protocol, separator, _ = url.partition("://")
        if not separator or re.search(r"[*?\[\]]|::", url):  # drivers would expand or chain these
            raise InputError(f"{named} must be protocol://bucket/prefix without *, ?, [, ] and ::")
        local = {"auto_mkdir": True} if protocol in ("file", "local") else {}
        every = {**local, **options, "skip_instance_cache": True}
        try:
            # Imported here: it takes 0.1 s, which only runs with a remote need to spend.
            self._fs, root = importlib.import_module("fsspec.core").url_to_fs(url, **every)
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            install = f"pip install 'maxpo[{extra}]'" if extra else error
            raise InputError(f"{named} needs a package that is not installed: {install}") from error
        except Exception as error:
            raise InputError(f"{named} cannot be used: {error}") from error
        self._root = str(root).rstrip("/")
        if not self._root:
            raise InputError(f"{named} names no bucket or folder")

    def steps(self) -> list[int]:
        """Steps that have a committed checkpoint, ascending.

        Raises:
            RemoteStoreError: the remote place failed.
        """
        return self._tried("listing checkpoints", self._committed)

    def upload(self, checkpoint: Path) -> None:
        """Copy a checkpoint; an earlier copy of the same step is removed first.

        Args:
            checkpoint: its final folder, .../step_000040, which must verify.

        Raises:
            CheckpointError: its manifest lists a name that cannot be used.
            RemoteStoreError: the remote place failed; the copies of other steps are untouched.
        """
        name = checkpoint.name

        def attempt() -> None:
            manifest = (checkpoint / MANIFEST).read_bytes()
            files = _listed(manifest, str(checkpoint))
            self._remove(name)
            for file in files:
                self._fs.put_file(str(checkpoint / file), self._path(name, file))
            self._fs.pipe_file(self._path(name, MANIFEST), manifest)
            self._fs.pipe_file(self._path(name, COMMIT), _marker(manifest, files))
            self._fs.pipe_file(self._path(LATEST), f"{name}\n".encode())

        self._tried(f"uploading {name}", attempt)

    def download(self, step: int, folder: Path) -> Path:
        """Copy a committed checkpoint back, replacing a local one of this step once the copy has verified.

        Args:
            step: of the checkpoint.
            folder: `checkpoints/` of the run folder.

        Returns:
            The folder of the checkpoint.

        Raises:
            CheckpointError: it is not there or damaged; the message names the file, `folder` is as it was.
            RemoteStoreError: the remote place failed, or `folder` cannot be written; `folder` is as it was.
        """
        name = f"step_{step:06d}"
        final, partial = folder / name, folder / f".{name}.partial"

        def attempt() -> None:
            manifest, files = self._manifest(name)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            (partial / MANIFEST).write_bytes(manifest)
            for file in files:
                (partial / file).parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._fs.get_file(self._path(name, file), str(partial / file))
                except FileNotFoundError as error:
                    raise CheckpointError(f"{self.url}/{name}/{file}: missing") from error
            try:
                verify(partial)
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(str(partial), f"{self.url}/{name}")) from error
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)

        try:
            self._tried(f"downloading {name}", attempt)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return final

    def prune(self, keep: Collection[int]) -> None:
        """Remove the checkpoints of all other steps, and what is left of copies that were never finished.

        What has no COMMIT is removed where it is older than the newest committed checkpoint: the newest may be on its
        way.

        Args:
            keep: steps to keep.

        Raises:
            RemoteStoreError: the remote place failed; the checkpoints to keep are untouched.
        """
        # Over all tries: one that lost its COMMIT in the first must still go in the second.
        doomed: set[int] = set()

        def attempt() -> None:
            newest = max(self._committed(), default=-1)
            for step in self._present():
                unwanted = step not in keep if self._has_commit(f"step_{step:06d}") else step < newest
                if unwanted:
                    doomed.add(step)
            for step in sorted(doomed):
                self._remove(f"step_{step:06d}")

        self._tried("removing old checkpoints", attempt)

    def _tried(self, doing: str, attempt: Callable[[], _T]) -> _T:
        """The result of an operation, begun anew after errors that may pass."""
        waits = list(WAITS_S)
        while True:
            try:
                self._fs.invalidate_cache()  # other processes write here too
                return attempt()
            except InputError:
                raise
            except Exception as error:
                # Drivers let errors of their HTTP libraries through, which are no OSErrors.
                passing = isinstance(error, OSError) or type(error).__module__ != "builtins"
                if not waits or not passing or isinstance(error, _FINAL):
                    cause = str(error) or type(error).__name__
                    raise RemoteStoreError(f"{self.url}: {doing} failed: {cause}") from error
            self._wait(waits.pop(0))

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _present(self) -> list[int]:
        """Steps that have a folder of the right name, whatever is in it, ascending."""
        try:
            entries = self._fs.ls(self._root, detail=True)
        except FileNotFoundError:
            return []
        names = [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"]
        return sorted(int(name[5:]) for name in names if re.fullmatch(r"step_([0-9]{6}|[1-9][0-9]{6,})", name))

    def _committed(self) -> list[int]:
        steps: list[int] = []
        for step in self._present():
            with contextlib.suppress(CheckpointError):
                self._manifest(f"step_{step:06d}")
                steps.append(step)
        return steps

    def _manifest(self, name: str) -> tuple[bytes, list[str]]:
        """The manifest of a committed checkpoint, as it is and what it lists."""
        where = f"{self.url}/{name}"
        found: dict[str, bytes] = {}
        for file in (COMMIT, MANIFEST):
            try:
                found[file] = self._fs.cat_file(self._path(name, file))
            except FileNotFoundError as error:
                raise CheckpointError(f"{where}/{file}: missing") from error
        files = _listed(found[MANIFEST], where)
        if found[COMMIT] != _marker(found[MANIFEST], files):
            raise CheckpointError(f"{where}/{COMMIT}: does not match {MANIFEST}")
        return found[MANIFEST], files

    def _has_commit(self, name: str) -> bool:
        try:
            self._fs.cat_file(self._path(name, COMMIT))  # not exists(): of many drivers it is False after any error
        except FileNotFoundError:
            return False
        return True

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name, COMMIT))
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(name), recursive=True)


def _marker(manifest: bytes, files: Collection[str]) -> bytes:
    """What COMMIT holds."""
    content = {"manifest_sha256": hashlib.sha256(manifest).hexdigest(), "files": len(files)}
    return (json.dumps(content) + "\n").encode()


def _listed(manifest: bytes, where: str) -> list[str]:
    """The files that a manifest lists; one that would not stay inside the folder, or hide our own, is refused."""
    try:
        content = json.loads(manifest)
    except ValueError as error:
        raise CheckpointError(f"{where}/{MANIFEST}: cannot be read ({error})") from error
    files = cast("dict[str, Any]", content).get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise CheckpointError(f"{where}/{MANIFEST}: lists no files")
    names = list(cast("dict[str, Any]", files))
    for name in names:
        path = PurePosixPath(name)
        plain = path.parts and str(path) == name and not path.is_absolute() and ".." not in path.parts
        if not plain or path.parts[0] in (MANIFEST, COMMIT) or "\\" in name or "\0" in name:
            raise CheckpointError(f"{where}/{MANIFEST}: lists {name!r}, which is no name of a checkpoint's file")
    return names
