"""Files of one checkpoint: listed with their checksums, verified, read."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Annotated, TypeVar

from pydantic import Field
from typing_extensions import TypedDict

from maxpo.checked_json import parse
from maxpo.errors import CheckpointError
from maxpo.files import step_name, step_of

MANIFEST, STATE = "manifest.json", "state.json"
T = TypeVar("T")
FORMAT = 2
"""Version of the layout. A checkpoint of another version is refused."""


class FileEntry(TypedDict):
    """Size and checksum of one file."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Manifest(TypedDict):
    """Content of `manifest.json`."""

    format: int
    maxpo: str
    """Version of this framework that wrote the checkpoint."""
    step: Annotated[int, Field(ge=0)]
    metrics: dict[str, float]
    files: dict[str, FileEntry]
    """By path inside the checkpoint."""


class _Format(TypedDict):
    """The part of a manifest that every version has."""

    format: int


def read_manifest(folder: Path, step: int | None = None) -> Manifest:
    """Return the manifest of a checkpoint.

    Args:
        folder: The checkpoint.
        step: Step that the manifest must have. None: that of the folder's name, if it is the name of a checkpoint.

    Raises:
        CheckpointError: the manifest is missing, cannot be read, is of another layout or of another step.
    """
    path = folder / MANIFEST
    manifest = parse_manifest(_read(path), path)
    expected = step_of(folder.name) if step is None else step
    if expected not in (None, manifest["step"]):
        raise CheckpointError(f"{path}: step {manifest['step']}, but it is that of {step_name(expected)}")
    return manifest


def parse_manifest(text: bytes, where: object) -> Manifest:
    """Return the manifest in `text`.

    Raises:
        CheckpointError: see `read_manifest`; or a listed name leaves the folder. `where` names the file.
    """
    version = _parse(_Format, text, where)["format"]
    if version != FORMAT:
        raise CheckpointError(f"{where}: format {version}, this version reads {FORMAT}")
    manifest = _parse(Manifest, text, where)
    for name in manifest["files"]:
        if not _is_inside(name):
            raise CheckpointError(f"{where}: lists a file under a name that is not allowed, {name!r}")
    return manifest


def _is_inside(name: str) -> bool:
    """Return True if a file name of a manifest stays in the folder, and is not the manifest itself."""
    path = PurePosixPath(name)
    plain = str(path) == name and not path.is_absolute() and "\0" not in name
    return plain and not {"..", "."} & {*path.parts, name} and name != MANIFEST


def verify(folder: Path, step: int | None = None) -> Manifest:
    """Return the manifest of a checkpoint after comparing every file with the manifest.

    Args:
        folder: The checkpoint.
        step: See `read_manifest`.

    Raises:
        CheckpointError: a file is missing, changed or not in the manifest; names the first one.
    """
    manifest = read_manifest(folder, step)
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    listed = manifest["files"]
    for name in sorted(there ^ set(listed)):
        raise CheckpointError(f"{folder / name}: {'not in the manifest' if name in there else 'missing'}")
    for name, expected in listed.items():
        try:
            actual = describe(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder / name}: cannot be read ({error.strerror})") from error
        if actual != expected:
            raise CheckpointError(f"{folder / name}: {actual['bytes']} bytes, changed since it was written")
    return manifest


def describe(path: Path) -> FileEntry:
    """Return the manifest's entry for a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def read_json(kind: type[T], path: Path) -> T:
    """Return a JSON file of a checkpoint as a type, see `maxpo.checked_json.parse`.

    Raises:
        CheckpointError: The file is missing, cannot be read, or does not fit the type.
    """
    return _parse(kind, _read(path), path)


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: cannot be read (not a file)")  # a pipe would be waited for
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _parse(kind: type[T], text: bytes, where: object) -> T:
    try:
        return parse(kind, text)
    except ValueError as error:
        raise CheckpointError(f"{where}: cannot be read ({error})") from error
