"""Copies of checkpoints in an object store, published by a marker file because objects cannot be renamed.

    URL/step_000040/   the files of the checkpoint, manifest.json, and COMMIT, which is written last
    URL/LATEST         the name of the checkpoint uploaded last, for people

COMMIT holds the sha256 of the manifest, and the manifest lists every file with its sha256. A folder without COMMIT, or
with the COMMIT of another manifest, is not a checkpoint. A removal deletes COMMIT first.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from maxpo.checkpoints.local import LATEST
from maxpo.checkpoints.manifest import MANIFEST, parse_manifest, verify
from maxpo.errors import CheckpointError, InputError, RunError
from maxpo.files import replacing, step_name, step_of

COMMIT = "COMMIT"
WAITS = (1.0, 4.0)
"""Seconds to wait before the second and the third try of an operation."""
_EXTRAS = {"s3": "maxpo[s3]", "s3a": "maxpo[s3]", "gs": "maxpo[gcs]", "gcs": "maxpo[gcs]"}
"""Extra that installs the driver of a protocol. These stores have no folders, and making one could make a bucket."""
_LOST_CONNECTION = {
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.IncompleteReadError",
    "aiohttp.client_exceptions.ClientError",
}
"""Errors of drivers that are retried like an OSError."""

T = TypeVar("T")


class RemoteStoreError(RunError):
    """A failed operation of the store. The message names URL, operation and cause."""


class RemoteStore:
    """Checkpoints below one URL, written by one process at a time.

    An operation is tried up to three times if the connection or the store fails, and once if the store refuses. After
    any error, and if this process dies at any point, all other checkpoints in the store can still be loaded.
    """

    def __init__(self, url: str, options: Mapping[str, object], wait: Callable[[float], object] = time.sleep) -> None:
        """Create the driver. Nothing is read or written yet.

        Args:
            url: `s3://bucket/prefix`, `gs://bucket/prefix`, `file:///folder` or any other URL that fsspec supports.
            options: Passed unchanged to fsspec's driver, for example `endpoint_url`.
            wait: Called with the number of seconds to wait between two tries.

        Raises:
            InputError: The URL or an option is wrong, or the driver is not installed.
        """
        from fsspec.core import url_to_fs  # pyright: ignore  # here: slow, and few runs need fsspec

        protocol = url.partition("://")[0]
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://.*", url):
            raise InputError(f"checkpoint.remote: {url} is not a URL such as s3://bucket/prefix or file:///folder")
        fresh = {"skip_instance_cache": True, "use_listings_cache": False}
        try:
            self._fs, root = cast("tuple[Any, str]", url_to_fs(url, **{**options, **fresh}))
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            how = f"pip install '{extra}'" if extra else error
            raise InputError(f"checkpoint.remote: the driver for {url} is not installed: {how}") from error
        except Exception as error:
            raise InputError(f"checkpoint.remote: {url} cannot be used: {_text(error)}") from error
        self.url = url.rstrip("/")
        self._root = root.rstrip("/")
        self._protocol, self._wait = protocol, wait
        self._latest = f"{self._root}/{LATEST}"
        if not self._root.strip("/"):
            raise InputError(f"checkpoint.remote: {url} names no bucket or folder")

    def steps(self) -> list[int]:
        """Return the steps that have a committed checkpoint, ascending.

        Raises:
            RemoteStoreError: The store cannot be read.
        """
        return self._try("listing checkpoints", self._committed)

    def upload(self, checkpoint: Path) -> None:
        """Copy a checkpoint to the store. An existing copy of the same step is removed first.

        Args:
            checkpoint: Verified folder `.../step_000040`, which must exist until this method returns.

        Raises:
            CheckpointError: The folder is not a checkpoint, or its manifest lists a name that is not allowed.
            InputError: The URL is the folder of the checkpoints themselves.
            RemoteStoreError: The copy could not be written.
        """
        step = step_of(checkpoint.name)
        if step is None or not (checkpoint / MANIFEST).is_file():
            raise CheckpointError(f"{checkpoint}: not a checkpoint")
        if self._protocol in ("file", "local") and Path(self._root).resolve() == checkpoint.parent.resolve():
            raise InputError(f"checkpoint.remote: {self.url} is the folder of the checkpoints themselves")

        def copy() -> None:
            manifest = (checkpoint / MANIFEST).read_bytes()
            names = _names(manifest, str(checkpoint))
            self._remove(step)
            for name in (*names, MANIFEST):
                self._make_folder(self._key(step, name))
                self._fs.put_file(str(checkpoint / name), self._key(step, name))
            self._fs.pipe_file(self._key(step, COMMIT), _seal(manifest, len(names)))

        self._try(f"uploading {checkpoint.name}", copy)
        self._try(f"writing {LATEST}", lambda: self._point_to(step))

    def download(self, step: int, folder: Path) -> Path:
        """Copy a checkpoint from the store and verify the copy before it replaces a local one of the same step.

        Args:
            step: One of `steps`.
            folder: `checkpoints/` of the run folder.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: The checkpoint is missing or damaged. The message names the file. `folder` is unchanged.
            RemoteStoreError: The checkpoint could not be read or written.
        """
        final = folder / step_name(step)

        def copy() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(final) as partial:
                partial.mkdir()
                manifest, names = self._manifest(step)
                (partial / MANIFEST).write_bytes(manifest)
                for name in names:
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    self._get(step, name, partial / name)
                try:
                    verify(partial, step)
                except CheckpointError as error:
                    raise CheckpointError(str(error).replace(str(partial), f"{self.url}/{final.name}")) from error

        self._try(f"downloading {final.name}", copy)
        return final

    def prune(self, keep: Collection[int]) -> None:
        """Remove the checkpoints that are not in `keep`, and unfinished uploads older than the newest checkpoint.

        Raises:
            RemoteStoreError: A file could not be removed.
        """

        doomed: set[int] = set()  # kept across tries: the second removes the rest of what the first began

        def remove() -> None:
            committed = self._committed()
            newest = max(committed, default=0)
            for step in self._folders():
                unfinished = COMMIT not in self._files(step)
                if (step < newest) if unfinished else (step not in keep):
                    doomed.add(step)
            for step in doomed:
                self._remove(step)
            left = [step for step in committed if step in keep]
            if self._fs.exists(self._latest) and self._pointed_to() not in left:
                if left:
                    self._point_to(left[-1])
                else:
                    self._fs.rm_file(self._latest)

        self._try("removing old checkpoints", remove)

    def _try(self, operation: str, do: Callable[[], T]) -> T:
        for seconds in (*WAITS, None):
            try:
                return do()
            except InputError:
                raise
            except Exception as error:
                if seconds is None or not _transient(error):
                    raise RemoteStoreError(f"{self.url}: {operation} failed: {_text(error)}") from error
                self._wait(seconds)
        raise AssertionError("the last try returns or raises")

    def _key(self, step: int, name: str = "") -> str:
        return f"{self._root}/{step_name(step)}/{name}".rstrip("/")

    def _make_folder(self, key: str) -> None:
        if self._protocol not in _EXTRAS:
            self._fs.makedirs(key.rpartition("/")[0], exist_ok=True)

    def _folders(self) -> list[int]:
        """Return the steps that have a folder, complete or not, ascending."""
        try:
            entries = self._fs.ls(self._root, detail=True)
        except FileNotFoundError as error:
            if error.__cause__ is not None:  # reported by the store: the bucket does not exist
                raise
            return []  # reported by the driver: nothing was uploaded yet
        names = [e["name"].rstrip("/").rpartition("/")[2] for e in entries if e["type"] == "directory"]
        return sorted(step for name in names if (step := step_of(name)) is not None)

    def _files(self, step: int) -> list[str]:
        """Return the names of all files in the folder of a step."""
        start = self._key(step) + "/"
        return [key.removeprefix(start) for key in self._fs.find(self._key(step)) if key.startswith(start)]

    def _committed(self) -> list[int]:
        def committed(step: int) -> bool:
            try:
                self._manifest(step)
            except CheckpointError:
                return False
            return True

        return [step for step in self._folders() if committed(step)]

    def _manifest(self, step: int) -> tuple[bytes, list[str]]:
        """Return the manifest and the names it lists. Raise CheckpointError unless COMMIT matches."""
        commit, manifest = self._read(step, COMMIT), self._read(step, MANIFEST)
        where = f"{self.url}/{step_name(step)}"
        names = _names(manifest, where)
        if commit != _seal(manifest, len(names)):
            raise CheckpointError(f"{where}/{COMMIT}: does not match {MANIFEST}")
        return manifest, names

    def _read(self, step: int, name: str) -> bytes:
        try:
            return self._fs.cat_file(self._key(step, name))
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.url}/{step_name(step)}/{name}: missing") from error

    def _get(self, step: int, name: str, target: Path) -> None:
        try:
            self._fs.get_file(self._key(step, name), str(target))
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.url}/{step_name(step)}/{name}: missing") from error

    def _remove(self, step: int) -> None:
        """Remove all files of a step one by one, because drivers do not report failures within a removal of many."""
        for name in sorted(self._files(step), key=lambda name: name != COMMIT):
            self._fs.rm_file(self._key(step, name))
        if self._protocol not in _EXTRAS and self._fs.isdir(self._key(step)):
            self._fs.rm(self._key(step), recursive=True)

    def _point_to(self, step: int) -> None:
        self._fs.pipe_file(self._latest, f"{step_name(step)}\n".encode())

    def _pointed_to(self) -> int | None:
        return step_of(self._fs.cat_file(self._latest).decode(errors="replace").strip())


def _seal(manifest: bytes, files: int) -> bytes:
    """Return the content of COMMIT."""
    seal = {"manifest_sha256": hashlib.sha256(manifest).hexdigest(), "files": files}
    return json.dumps(seal).encode()


def _names(manifest: bytes, where: str) -> list[str]:
    """Return the file names that a manifest lists. Raise CheckpointError if one is reserved or leaves the folder."""
    names = list(parse_manifest(manifest, f"{where}/{MANIFEST}")["files"])
    if COMMIT in names:
        raise CheckpointError(f"{where}/{MANIFEST}: lists a file under a name that is not allowed, {COMMIT!r}")
    return names


def _transient(error: Exception) -> bool:
    """Return True if a retry may help. gcsfs has no PermissionError, only an OSError whose text begins "Forbidden"."""
    if isinstance(error, PermissionError | FileNotFoundError) or str(error).startswith("Forbidden"):
        return False
    classes = {f"{base.__module__}.{base.__qualname__}" for base in type(error).__mro__}
    return isinstance(error, OSError) or bool(classes & _LOST_CONNECTION)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
