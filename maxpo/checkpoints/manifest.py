"""The files of one checkpoint: listed with their checksums, verified, read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from maxpo.errors import CheckpointError

MANIFEST, STATE = "manifest.json", "state.json"
FORMAT = 2
"""Version of the layout; a checkpoint of another one is refused."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: there is none, it cannot be read, or it is of another layout.
    """
    manifest = _read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{folder / MANIFEST}: format {manifest.get('format')}, this version reads {FORMAT}")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all there, unchanged, and no more.

    Raises:
        CheckpointError: naming the first file that is not as the manifest says.
    """
    manifest = read_manifest(folder)
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    listed = cast("dict[str, dict[str, Any]]", manifest["files"])
    for name in sorted(there ^ set(listed)):
        raise CheckpointError(f"{folder / name}: {'not in the manifest' if name in there else 'missing'}")
    for name, expected in listed.items():
        try:
            found = describe(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder / name}: cannot be read ({error.strerror})") from error
        if found != expected:
            raise CheckpointError(f"{folder / name}: {found['bytes']} bytes, changed since it was written")
    return manifest


def read_state(folder: Path) -> dict[str, Any]:
    """What `write` was given as `state`.

    Raises:
        CheckpointError: it cannot be read.
    """
    return _read_json(folder / STATE)


def describe(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, as the manifest has them."""
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
