"""Real engines after syncs of models that vLLM packs, or holds under other names."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MODELS = {
    "llama": 1e-4,
    "qwen3_moe": 1e-4,  # fused experts, which the CPU kernels read packed
    "glm4_moe": 1e-4,  # and a router bias, which is a buffer
    "mixtral": 1e-4,  # and names that transformers has changed
    "gpt_oss": 1e-4,  # and experts that its load_weights copies without vLLM's loaders
    "ctrl": 1e-4,  # a head with a bias, which its load_weights makes anew
    # vLLM holds two parameters of its activation in bfloat16, whatever the format of the model; and its buffers are not
    # sent.
    "apertus": 0.01,
}


@pytest.fixture(scope="module")
def checked() -> dict[str, dict[str, object]]:
    command = [sys.executable, "-m", "benchmarks.engine_check", *MODELS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", MODELS)
def test_an_engine_computes_what_was_sent(name: str, checked: dict[str, dict[str, object]]) -> None:
    result = checked[name]
    assert "error" not in result, result
    gaps = [result["start"], *result["synced"]]  # type: ignore[misc]
    assert max(gaps) < MODELS[name], result
    assert result["greedy"], result
