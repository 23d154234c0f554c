"""What only a CUDA device can show. The estimators' own tests run on it too, see `tests/devices.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maxpo.weights.checksum import tensor_digest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_digests_equal_those_of_the_cpu() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        t = (100 * torch.randn((1 << 22) + 3, generator=torch.Generator().manual_seed(0))).to(dtype)
        assert int(tensor_digest(t.cuda())) == int(tensor_digest(t))


SHARED = ("cluster.placement=colocated",)
TWO = ("learner.ranks=2", "learner.zero_stage=3")


@pytest.mark.parametrize(
    ("gpus", "settings"),
    [
        (1, SHARED),
        (1, (*SHARED, "cluster.sleep_level=2")),
        (2, ("cluster.placement=disaggregated",)),
        (2, (*SHARED, *TWO, "rollout.workers=2")),
        (2, (*SHARED, *TWO, "rollout.tensor_parallel_size=2")),
        (3, (*TWO, "learner.sequence_parallel=2")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_the_demo_trains_on_gpus(gpus: int, settings: tuple[str, ...], tmp_path: Path) -> None:
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"needs {gpus} GPUs")
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [
        str(Path(sys.executable).with_name("maxpo")), "train", "configs/presets/demo.yaml", f"run.dir={tmp_path}",
        "run.steps=3", "eval.prompts=32", "learner.device=cuda", "rollout.device=cuda", *settings,
        "rollout.gpu_memory_utilization=0.3", "rollout.enforce_eager=true",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "train/loss" in row]
    assert [row["weights/version"] for row in steps] == [1.0, 2.0, 3.0]
    assert all(row["mismatch/kl"] < 1e-2 for row in steps)
