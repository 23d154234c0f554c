"""Checks of the weight files of a model folder by their headers, without reading any weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from maxpo.wording import listed, shown

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
AGAIN = "copy or download the folder again"


def weight_problems(folder: Path, model: nn.Module, *, packed: bool) -> Iterator[str]:
    """Yield what is wrong with the weight files: missing, cut off, or those of another model.

    Args:
        folder: Folder of the model.
        model: The model, built from its config.json without memory.
        packed: True if the files hold quantized weights, whose shapes are not those of the model.
    """
    if not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
        if not any(folder.glob("pytorch_model*.bin")):
            yield f"model.path = {folder} has no weights: neither {SINGLE} nor {INDEX} is there; {AGAIN}"
        return
    shapes: dict[str, tuple[int, ...]] = {}
    problems = list(_read(folder, shapes))
    yield from problems
    if problems or packed:
        return
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if wrong := [name for name in own if name in shapes and shapes[name] != own[name]]:
        first = wrong[0]
        yield (
            f"model.path = {folder}: {len(wrong)} weights have other shapes than config.json says, first {first}: "
            f"{list(shapes[first])} in the file, {list(own[first])} by config.json; take both from one model"
        )
    # Files may have other names, pieces and further weights, but never fewer numbers.
    needed, there = sum(map(prod, own.values())), sum(map(prod, shapes.values()))
    if there < needed:
        missing = [name for name in own if name not in shapes]
        yield (
            f"model.path = {folder}: the files hold {there} numbers, but the model has {needed}; "
            f"not there: {listed(missing, 3)}; {AGAIN}"
        )


def _read(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield the problems of the files, and put the shapes in their headers into `shapes`."""
    files, named = [SINGLE], dict[str, str]()
    if not (folder / SINGLE).is_file():
        try:
            index: Any = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            named = {str(name): str(file) for name, file in index["weight_map"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            yield f"{folder / INDEX} cannot be read ({type(error).__name__}: {shown(str(error))}); {AGAIN}"
            return
        files = sorted(set(named.values()))
    if absent := [file for file in files if not (folder / file).is_file()]:
        lost = f"{len(absent)} of {len(files)} weight files are missing: {listed(absent)}"
        yield f"model.path = {folder}: {lost}; {AGAIN}"
    for file in files:
        if file not in absent:
            yield from _read_header(folder / file, shapes)
    if not absent and (lost := [name for name in named if name not in shapes]):
        yield f"model.path = {folder}: {INDEX} names {len(lost)} weights that no file has: {listed(lost, 3)}; {AGAIN}"


def _read_header(file: Path, shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield the problem if the file is shorter or longer than its header says. Put the shapes into `shapes`.

    The library safetensors maps the full file into memory, which fails if the file is larger than the memory.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header: Any = json.loads(opened.read(min(length, size)).decode("utf-8"))
        tensors = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
        needed = 8 + length + max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        found = {name: tuple(map(int, entry["shape"])) for name, entry in tensors.items()}
    # A header may hold anything.
    except Exception as error:
        reason = f"it has no readable header ({type(error).__name__})"
        yield f"{file} ({size} bytes) is cut off or damaged: {reason}; {AGAIN}"
        return
    if needed != size:
        yield f"{file} ({size} bytes) is cut off or damaged: its header describes {needed} bytes; {AGAIN}"
    shapes |= found
