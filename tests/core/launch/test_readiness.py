"""All checks before a run: what is wrong with settings, folder, model, data, verifier and machine is one list."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.run import machine
from launch.run.machine import machine_problems
from launch.run.readiness import get_ready
from launch.run.trial import trial_problems
from learner.deepspeed_engine import file_problems
from maxpo.config import Config, LearnerConfig, RolloutConfig
from maxpo.configure.loading import load_config
from maxpo.errors import InputError, ProblemsError
from maxpo.types import Prompt
from rollout.vllm_engine.arguments import argument_problems, engine_fields

DEMO = Path("configs/presets/demo.yaml")
MODEL = Path("configs/models/countdown-0.5m")
PROMPT = Prompt(prompt_id="p", text="3", token_ids=(3,), reference="3", source="s")


def config_of(*overrides: str) -> Config:
    return load_config([DEMO], overrides).config


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that makes a dry run of the demo, which must find something, and returns what it says."""

    def run(*overrides: str) -> str:
        assert main(["train", str(DEMO), f"run.dir={tmp_path}", "--dry-run", *overrides]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said and "\x1b" not in said
        return said

    return run


def test_everything_is_told_at_once(told: Callable[..., str], tmp_path: Path) -> None:
    model = Path(shutil.copytree(MODEL, tmp_path / "model"))
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-7])
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "3"}\n')
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/precious").touch()
    said = told(
        *("run.steps=0", "run.overwrite=false", f"model.path={model}", "cluster.interface=none0"),
        *("data.task=null", f"data.train_file={rows}", f"data.eval_file={rows}", "rollout.engine_args={max_seqs: 3}"),
    )
    assert said.startswith("maxpo: 6 problems, nothing was started:\n\n  run.steps = 0   (command line)\n")
    for words in (
        "/demo exists already and holds precious: choose another run.name",
        "model.safetensors (",
        "is cut off or damaged: its header describes",
        "cluster.interface = none0",
        "rollout.engine_args.max_seqs: vLLM's AsyncEngineArgs has no such field",
        "rows.jsonl: 1 of 1 rows cannot be used:",
        "Not checked, since it needs what is wrong: the self-test of the learner.",
        "`maxpo config explain KEY` says what a setting means.",
    ):
        assert words in said


def test_rows_are_checked_without_a_tokenizer(told: Callable[..., str], tmp_path: Path) -> None:
    model = Path(shutil.copytree(MODEL, tmp_path / "model"))
    for file in model.glob("tokenizer*"):
        file.unlink()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": 3, "answer": 3}\n')
    said = told(f"model.path={model}", "data.task=null", f"data.train_file={rows}", f"data.eval_file={rows}")
    assert "has no tokenizer" in said or "cannot be loaded" in said
    assert "line 1: field `prompt` must be a non-empty string" in said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["checkpoint.resume=must"], "has no checkpoint to go on from: use auto or never for a new run"),
        (["run.dir=/proc/nothing"], "run.dir = /proc/nothing cannot be written"),
        (["run.dir=README.md/runs"], "run.dir = README.md/runs cannot be written"),
        ([f"run.dir={'x/' * 3000}"], "cannot be written: File name too long"),
        (["checkpoint.remote=nothing://bucket"], "checkpoint.remote"),
        (["cluster.nodes=2"], "cluster.nodes = 2, but a run that starts its own cluster has one node"),
        (["cluster.gpus_per_node=64"], "cluster.gpus_per_node = 64, but torch sees"),
        (["learner.device=cuda", "rollout.device=cuda", "rollout.workers=64"], "the run needs 65 GPUs"),
        (["reward.verifier=tests.verifiers:nothing"], "has no attribute 'nothing'"),
        (
            ["rollout.workers=5000"],
            "rollout.workers = 5000 x rollout.tensor_parallel_size = 1 processes sample at once",
        ),
    ],
)
def test_a_dry_run_means_it(overrides: list[str], said: str, told: Callable[..., str]) -> None:
    assert said in told("learner.cpu_threads=1", "model.self_test=off", *overrides)


def test_a_name_that_is_taken_and_a_folder_that_may_be_replaced(told: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "demo" / "checkpoints" / "step_000003").mkdir(parents=True)
    assert "holds checkpoints/step_000003" in told("run.overwrite=false", "model.self_test=off")
    (tmp_path / "demo" / "checkpoints" / "step_000003").rmdir()
    assert main(["train", str(DEMO), f"run.dir={tmp_path}", "run.overwrite=false", "--dry-run"]) == 0


def test_the_checkpoint_of_a_dry_run_is_verified(told: Callable[..., str], tmp_path: Path) -> None:
    run = Path(shutil.copytree("tests/stored/run", tmp_path / "demo"))
    (run / "checkpoints/step_000002/learner/state-00000.safetensors").write_bytes(b"")
    assert "step_000002" in told("checkpoint.resume=must", "model.self_test=off")


def test_the_machine_has_enough_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(machine, "memory", lambda: 64 * machine.GIB)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert list(machine_problems(config_of("rollout.workers=8", "learner.ranks=8"), 10**6)) == []
    assert list(machine_problems(config_of(), 10**9)) == []
    for overrides, parameters, said in (
        (["rollout.workers=9"], 0, "rollout.workers = 9 x rollout.tensor_parallel_size = 1 processes sample"),
        (["learner.ranks=9"], 0, "learner.ranks = 9 x learner.cpu_threads = 2 threads train at once"),
        (["learner.cpu_threads=33"], 0, "has 8 cores, for as many ranks and 32 threads"),
        (["reward.workers=5000"], 0, "at least 252.9 GiB of memory"),
        (["rollout.cpu_kv_cache_gib=100"], 0, "lower the largest"),
        ([], 10**10, "but this machine has 64.0 GiB"),
    ):
        (found,) = machine_problems(config_of(*overrides), parameters)
        assert said in found, overrides
    assert list(machine_problems(config_of("ray.address=10.0.0.1:6379", "rollout.workers=900"), 10**12)) == []


def test_arguments_of_vllm() -> None:
    def problems(**arguments: Any) -> list[str]:
        return list(argument_problems(RolloutConfig(max_new_tokens=1, engine_args=arguments), "cpu"))

    assert problems(max_num_batched_tokens=9000, seed=3) == []
    assert "has no such field. Did you mean max_num_batched_tokens?" in problems(max_num_batch_tokens=3)[0]
    for name in ("model", "dtype", "worker_extension_cls", "logprobs_mode", "enable_chunked_prefill"):
        assert f"rollout.engine_args.{name}: a run sets this argument" in problems(**{name: 1})[0]
    assert {"max_num_seqs", "enable_log_requests"} <= {*engine_fields()}


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"train_batch_size": 7}, "train_batch_size"),
        ({"optimizer": {"type": "Adam"}, "gradient_clipping": 3}, "optimizer, gradient_clipping"),
        ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}, "zero_optimization.stage"),
        ({"zero_optimization": [1]}, "zero_optimization must be an object"),
        ({"fp16": {"enabled": True}}, "fp16"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}, "stage": 2}, "wall_clock_breakdown": True},
            None,
        ),
        ({"train_batch_size": 1, "data_types": {"grad_accum_dtype": "bf16"}}, None),
    ],
)
def test_a_deepspeed_file_sets_nothing_that_the_run_sets(extra: Any, named: str | None, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(extra))
    found = list(file_problems(LearnerConfig(lr=0.1, deepspeed=str(file))))
    assert bool(found) == (named is not None) and (named or "") in "".join(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("fine", None),
        ("raise", "KeyError"),
        ("die", "its process ended"),
        ("hang", "no result within reward.timeout_s"),
    ],
)
def test_a_verifier_of_the_user_is_tried(answer: str, said: str | None) -> None:
    config = config_of("reward.verifier=tests.verifiers:moody", "reward.timeout_s=2")
    found = list(trial_problems(config, replace(PROMPT, reference=answer)))
    assert bool(found) == (said is not None) and (said or "") in "".join(found)
    assert all(text.startswith("reward.verifier: tests.verifiers:moody failed on the first prompt") for text in found)


def test_one_problem_is_told_as_it_is(tmp_path: Path) -> None:
    loaded = load_config([DEMO], [f"run.dir={tmp_path}", "cluster.interface=none0", "model.self_test=off"])
    with pytest.raises(InputError, match=r"^cluster\.interface = none0: "):
        get_ready(loaded)
    assert str(ProblemsError(["a", "b"], ["c"])).splitlines() == [
        "2 problems, nothing was started:",
        "",
        "  a",
        "",
        "  b",
        "",
        "Not checked, since it needs what is wrong: c.",
    ]
