"""Files of one checkpoint: listed with their checksums, verified, read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypedDict, cast

from maxpo.errors import CheckpointError

MANIFEST, STATE = "manifest.json", "state.json"
FORMAT = 2
"""Version of the layout. A checkpoint of another version is refused."""


class FileEntry(TypedDict):
    """Size and checksum of one file."""

    bytes: int
    sha256: str


class Manifest(TypedDict):
    """Content of `manifest.json`."""

    format: int
    maxpo: str
    """Version of this framework that wrote the checkpoint."""
    step: int
    metrics: dict[str, float]
    files: dict[str, FileEntry]
    """By path inside the checkpoint."""


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint.

    Raises:
        CheckpointError: the manifest is missing, cannot be read, or is of another layout.
    """
    manifest = _read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{folder / MANIFEST}: format {manifest.get('format')}, this version reads {FORMAT}")
    return cast("Manifest", manifest)


def verify(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint after comparing every file with the manifest.

    Raises:
        CheckpointError: a file is missing, changed or not in the manifest; names the first one.
    """
    manifest = read_manifest(folder)
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


def read_state(folder: Path) -> dict[str, Any]:
    """Return the `state` that `Checkpoints.write` was given.

    Raises:
        CheckpointError: the state cannot be read.
    """
    return _read_json(folder / STATE)


def describe(path: Path) -> FileEntry:
    """Return the manifest's entry for a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return cast("dict[str, Any]", content)
