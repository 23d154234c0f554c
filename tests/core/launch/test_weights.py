"""Weight files are compared with their headers, their index and config.json, and never read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from launch.run.weights import weight_problems

DEMO = Path("configs/models/countdown-0.5m")
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


def problems(folder: Path) -> list[str]:
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(DEMO))
    return list(weight_problems(folder, lm, packed=False))


def shard(folder: Path) -> list[str]:
    """Split the weights into two files with an index. Return the names of the weights."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return names


def test_whole_weights_are_accepted(model: Path) -> None:
    assert problems(model) == []
    shard(model)
    assert problems(model) == []
    shutil.copy(DEMO / "model.safetensors", model / "pytorch_model.bin")
    for file in model.glob("*safetensors*"):
        file.unlink()
    assert problems(model) == []  # another format, whose files have no header


@pytest.mark.parametrize("size", [0, 5, 8, 1000, 100_000, -1])
def test_a_file_that_is_cut_off_is_told_with_its_size(size: int, model: Path) -> None:
    file = model / "model.safetensors"
    left = file.read_bytes()[:size]
    file.write_bytes(left)
    (said,) = problems(model)
    assert f"{file} ({len(left)} bytes) is cut off or damaged" in said


@pytest.mark.parametrize("head", [b"\xff" * 8, b"\x00" * 8, b"version https://git-lfs.github.com/spec/v1\n", b"<html>"])
def test_a_file_that_is_no_weights_is_told(head: bytes, model: Path) -> None:
    (model / "model.safetensors").write_bytes(head)
    assert "is cut off or damaged" in problems(model)[0]


def test_missing_weights_are_told(model: Path) -> None:
    shard(model)
    (model / "model-00002-of-00002.safetensors").unlink()
    assert "1 of 2 weight files are missing: model-00002-of-00002.safetensors" in problems(model)[0]
    (model / "model.safetensors.index.json").unlink()
    assert "has no weights: neither model.safetensors nor" in problems(model)[0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": null}', "\udc80", "[" * 3000])
def test_a_damaged_index_is_told(text: str, model: Path) -> None:
    shard(model)
    (model / "model.safetensors.index.json").write_bytes(text.encode(errors="surrogateescape"))
    assert "model.safetensors.index.json cannot be read" in problems(model)[0]


def test_an_index_of_other_files_is_told(model: Path) -> None:
    shard(model)
    index = model / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": files | {"model.extra": "model-00001-of-00002.safetensors"}}))
    assert "names 1 weights that no file has: model.extra" in problems(model)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t | {"model.norm.weight": torch.zeros(64)},
            r"1 weights have other shapes.*\[64\] in the file",
        ),
        (lambda t: {n: v for n, v in t.items() if ".2." not in n}, "the files hold .* numbers, but the model has"),
        (lambda t: {}, "the files hold 0 numbers, but the model has"),
    ],
)
def test_the_weights_of_another_model_are_told(change: Callable[[Tensors], Tensors], said: str, model: Path) -> None:
    save_file(change(load_file(model / "model.safetensors")), model / "model.safetensors")
    found = " ".join(problems(model))
    assert re.search(said, found)
