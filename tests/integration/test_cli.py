"""The commands as a user types them. Those that start nothing run in this process, but for one of each kind."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.commands import SMALL, InProcess, maxpo
from tests.integration.conftest import Run

STEPS = [0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6, 6]
"""Of each row of metrics.jsonl: each step and its checkpoint, and an evaluation at the start and after each second."""


def test_a_run_prints_the_tables_and_leaves_its_folder(trained: Run) -> None:
    for text in ("pass@1", "pass@16", "step 0", "step 6", "tokens/s", "generate", "exported model", "run folder"):
        assert text in trained.output
    assert "6 steps; one step: 8 prompts x 16 completions = 128 sequences" in trained.output
    assert {p.name for p in trained.folder.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "tensorboard",
        "rollouts",
        "log",
        "checkpoints",
        "policy",
    }
    assert [m["step"] for m in trained.metrics] == STEPS
    assert [m["weights/version"] for m in trained.metrics if "weights/version" in m] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert all(m["mismatch/logprob_abs"] < 1e-4 for m in trained.metrics if "train/loss" in m)
    assert "k: 4" in (trained.folder / "config.yaml").read_text()
    assert len((trained.folder / "rollouts" / "step_000002.jsonl").read_text().splitlines()) == 16


def test_tensorboard_holds_what_metrics_jsonl_holds(trained: Run) -> None:
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  # made at run time
    from tensorboardX.record_writer import masked_crc32c

    (file,) = (trained.folder / "tensorboard").iterdir()
    data, offset, seen = file.read_bytes(), 0, {}
    while offset < len(data):
        header = data[offset : offset + 8]
        assert int.from_bytes(data[offset + 8 : offset + 12], "little") == masked_crc32c(header)
        size = int.from_bytes(header, "little")
        event = Event.FromString(data[offset + 12 : offset + 12 + size])
        offset += 16 + size
        for value in event.summary.value:
            seen[event.step, value.tag] = value.simple_value
    # TensorBoard has no @ in its tags.
    written = {
        (m["step"], k.replace("@", "_")): v for m in trained.metrics for k, v in m.items() if k not in ("step", "time")
    }
    assert set(seen) == set(written)
    assert all(seen[key] == pytest.approx(written[key], rel=1e-6, abs=1e-9) for key in written)


def test_the_policy_has_learned_something_and_evaluates_as_it_did_in_training(
    trained: Run, tmp_path: Path, in_process: InProcess
) -> None:
    before = load_file("configs/models/countdown-0.5m/model.safetensors")
    after = load_file(trained.folder / "policy" / "model.safetensors")
    assert set(before) == set(after)
    moved = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert moved == set(before)

    for name, model in (("a", "configs/models/countdown-0.5m"), ("b", str(trained.folder))):
        done = maxpo("evaluate", model, "configs/presets/demo.yaml", *SMALL, "--out", str(tmp_path / name), "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        printed = json.loads(done.stdout)
        evaluations = [m for m in trained.metrics if "eval/pass@1" in m]
        in_training = evaluations[0 if name == "a" else -1]
        figures = printed["overall"]["estimates"]
        assert set(figures) == {"pass@1", "pass@4", "pass@8", "pass@16", "avg@16", "greedy"}
        for figure, found in figures.items():
            # The same prompts, seeds and weights; a rounding difference may flip single tokens.
            assert found["value"] == pytest.approx(in_training[f"eval/{figure}"], abs=0.02)
            assert in_training[f"eval/{figure}/low"] <= found["value"] <= in_training[f"eval/{figure}/high"]
        written = json.loads((tmp_path / name / "eval.json").read_text())
        assert written["overall"] == printed["overall"]
        assert len(written["prompts"]) == 48
        assert len((tmp_path / name / "rollouts" / "eval.jsonl").read_text().splitlines()) == 48 * 16

    done = in_process("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all prompts (48)" in done.stdout
    done = in_process("compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json")
    for figure, d in json.loads(done.stdout)["overall"]["figures"].items():
        moved = evaluations[-1][f"eval/{figure}"] - evaluations[0][f"eval/{figure}"]
        assert d["difference"]["value"] == pytest.approx(moved, abs=0.03)
        assert d["difference"]["low"] <= d["difference"]["value"] <= d["difference"]["high"]


def test_dry_run_checks_everything_and_starts_nothing(tmp_path: Path) -> None:
    started = time.monotonic()
    done = maxpo("train", "configs/presets/demo.yaml", f"run.dir={tmp_path}", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "32 prompts x 16 completions = 512 sequences" in done.stdout
    assert "group_size: 16" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - started < 120


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (
            ["algorithm.kk=3", "algorithm.k=16", "learner.lr=fast"],
            ["algorithm.kk", "algorithm.k = 16", "learner.lr = fast", "command line", "algorithm.k?"],
        ),
        (["model.path=/nowhere"], ["model.path = /nowhere", "no such folder"]),
        (["model.path=tests"], ["model.path = tests", "config.json"]),
        (["learner.device=cuda", "rollout.device=cuda", "rollout.workers=4"], ["needs 5 GPUs", "the cluster has"]),
        (["rollout.max_new_tokens=1000"], ["1016", "256 positions"]),
        (["data.train_size=100000"], ["100000"]),
        (
            [
                "data.task=null",
                "data.train_file=tests/data/no_answer.jsonl",
                "eval.at_start=false",
                "eval.at_end=false",
            ],
            ["no_answer.jsonl", "line 2", "`answer` is missing"],
        ),
        (["algorithm.minibatches=5"], ["multiple of algorithm.minibatches"]),
        (["reward.verifier=tests.nothing:here"], ["reward.verifier", "tests.nothing"]),
        (["reward.by_source={gsm8k: exact}"], ["reward.by_source: no prompt is from gsm8k; the sources are countdown"]),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    overrides: list[str], messages: list[str], tmp_path: Path, in_process: InProcess
) -> None:
    if "needs 5 GPUs" in messages and torch.cuda.device_count() >= 5:
        pytest.skip("this machine has the GPUs")
    done = in_process("train", "configs/presets/demo.yaml", f"run.dir={tmp_path}", "--dry-run", *overrides)
    assert done.returncode == 2, done.stdout + done.stderr
    for message in messages:
        assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "precious").write_text("data")
    done = maxpo("train", "configs/presets/demo.yaml", f"run.dir={tmp_path}", "run.overwrite=false")
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert (tmp_path / "demo" / "precious").read_text() == "data"


def test_config_explain(in_process: InProcess) -> None:
    done = in_process("config", "explain", "algorithm.k")
    assert done.returncode == 0
    assert done.stdout.startswith("algorithm.k = 4")
    assert in_process("config", "explain", "algorithm.kay").returncode == 2
