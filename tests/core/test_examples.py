"""The examples of docs/examples, against the numbers of their runs; and the model that they start from."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from launch import fetchmodel
from launch.cli import main
from launch.fetchmodel import MODELS, fetch_model
from maxpo.configload import load_config
from maxpo.errors import InputError, RunError

EXAMPLES = Path("docs/examples")


def lines(name: str) -> list[dict[str, Any]]:
    return json.loads((EXAMPLES / f"{name}.json").read_text())["lines"]


def test_the_table_of_smollm2_is_that_of_its_run() -> None:
    text = (EXAMPLES / "smollm2.md").read_text()
    found = [line for line in lines("smollm2") if "eval/pass@1" in line]
    assert [line["step"] for line in found] == [0, 20, 40]
    for line in found:
        cells = [tuple(100 * line[f"eval/pass@{k}{end}"] for end in ("", "/low", "/high")) for k in (1, 4, 8)]
        row = "".join(f" {value:.1f} % [{low:.1f}, {high:.1f}] |" for value, low, high in cells)
        assert f"| {line['step']} |{row}" in text


def test_smollm2_began_where_it_should_and_rose_beyond_its_intervals() -> None:
    first, *_, last = [line for line in lines("smollm2") if "eval/pass@1" in line]
    assert 0.05 <= first["eval/pass@1"] <= 0.3
    for k in (1, 8):
        assert last[f"eval/pass@{k}/low"] > first[f"eval/pass@{k}/high"]


def test_the_gpu_preset_differs_in_size_alone() -> None:
    given = ["model.path=configs/models/countdown-0.5m"]
    cpu = load_config([Path("configs/presets/smollm2.yaml")], given).config
    gpu = load_config([Path("configs/presets/smollm2_gpu.yaml")], given).config
    assert (gpu.data, gpu.reward, gpu.learner.lr, gpu.algorithm.k) == (cpu.data, cpu.reward, cpu.learner.lr, 4)
    sizes = [c.algorithm.prompts_per_step * c.algorithm.group_size for c in (cpu, gpu)]
    assert sizes == [128, 2048]
