"""An adapter under real DeepSpeed, and one short run with real vLLM."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from launch.run.exporting import export_checkpoint
from learner.model.parameters import trained_parameters
from maxpo.checkpoints.local import Checkpoints
from maxpo.config import LoraConfig
from maxpo.configure.loading import load_config
from maxpo.errors import InputError
from tests.integration.commands import maxpo
from tests.integration.conftest import MODEL, Learned, RankResult, Rounds
from tests.integration.learner_ranks import adapt, job
from tests.integration.test_gradients import assert_same, make_batch, plain_loss
from tests.integration.test_training_state import assert_equal, contents

LORA = LoraConfig(rank=4, alpha=6.0)
RESUMED = [(0, "float32"), (2, "float16"), (3, "bfloat16")]
BATCHES = [make_batch(seed) for seed in range(3)]


def lora_job(batches: list[Any], **settings: Any) -> dict[str, Any]:
    return job(batches, **({"aggregation": "constant", "budget": 100, "lora": LORA} | settings))


def rank_jobs(folder: Path) -> Rounds:
    kl: dict[str, Any] = {"kl_coef": 0.5, "stage": 3, "gradient_checkpointing": True}
    jobs = {f"stage {stage}": lora_job(BATCHES[:1], stage=stage) for stage in (1, 2, 3)}
    jobs |= {
        "shared rows": lora_job(BATCHES[:1], sequence_parallel=2),
        "kl": lora_job(BATCHES[:1], **kl),
        "kl to a model": lora_job(BATCHES[:1], **kl) | {"reference_model": True},
    }
    for stage, dtype in RESUMED:
        own = {"stage": stage, "dtype": dtype}
        saved = str(folder / f"{stage}-{dtype}")
        jobs |= {
            f"{stage} saved": lora_job(BATCHES[:1], **own) | {"save": saved},
            f"{stage} whole": lora_job(BATCHES, **own),
            f"{stage} resumed": lora_job(BATCHES[1:], **own) | {"load": saved},
        }
    return {}, jobs, {}


@pytest.fixture(scope="module")
def folder(learned: Learned) -> Path:
    return learned.folder


@pytest.fixture(scope="module")
def results(learned: Learned) -> dict[str, RankResult]:
    """What two ranks made of each job, by name."""
    return learned.results


def plain_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager")


def test_the_adapters_gradient_is_that_of_plain_pytorch_at_every_stage(results: dict[str, RankResult]) -> None:
    lm = plain_model()
    adapt(lm, LORA)
    plain_loss(lm, BATCHES[0], "constant").backward()
    want = {name: p.grad for name, p in trained_parameters(lm).items()}
    assert {name.rpartition(".lora_")[2] for name in want} == {"A.weight", "B.weight"}
    for name in ("0 saved", "stage 1", "stage 2", "stage 3", "shared rows"):
        assert_same(results[name][0], want)  # type: ignore[arg-type]


def test_an_update_changes_the_adapter_alone(results: dict[str, RankResult]) -> None:
    for dtype, names in (
        (torch.float32, ["0 saved", "0 whole", "stage 1", "stage 2", "stage 3"]),
        (torch.bfloat16, ["3 whole"]),
    ):
        lm = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)
        adapt(lm, LORA)
        for name in names:
            for key, before in lm.named_parameters():
                after = results[name][1][key]
                assert torch.equal(after, before.detach().float()) == (".lora_" not in key), (name, key)


def test_the_reference_is_the_base_without_a_model_of_its_own(results: dict[str, RankResult]) -> None:
    (gradient, _, metrics), (want, _, want_metrics) = results["kl"], results["kl to a model"]
    assert_same(gradient, want)
    assert metrics[0]["policy/reference_kl"] == pytest.approx(want_metrics[0]["policy/reference_kl"], rel=1e-4)
    assert metrics[0]["policy/reference_kl"] > 1e-3
    # Twice for the policy, with its gradient checkpointing, and once for the reference.
    rows = metrics[0]["train/microbatches"]
    assert (metrics[0]["forward_calls"], want_metrics[0]["forward_calls"]) == (3 * rows, 2 * rows)


@pytest.mark.parametrize(("stage", "dtype"), RESUMED)
def test_resumed_equals_never_stopped_bit_for_bit(
    stage: int, dtype: str, results: dict[str, RankResult], folder: Path
) -> None:
    assert_equal(results[f"{stage} resumed"][1], results[f"{stage} whole"][1])
    assert any(not torch.equal(w, results[f"{stage} saved"][1][key]) for key, w in results[f"{stage} whole"][1].items())
    state, _ = contents(folder / f"{stage}-{dtype}")
    assert {key.rpartition("/")[2] for key in state} == {"master", "exp_avg", "exp_avg_sq"}
    assert all(".lora_" in key and t.dtype == torch.float32 for key, t in state.items())
    # In bfloat16 the masters have digits that forward and backward do not.
    rounded = [torch.equal(t, t.bfloat16().float()) for key, t in state.items() if key.endswith("/master")]
    assert not any(rounded)


def test_a_state_of_another_rank_is_refused(folder: Path, results: dict[str, RankResult]) -> None:
    from learner.state.training_state import TrainingState

    assert results
    lm = plain_model()
    adapt(lm, replace(LORA, rank=8))
    parameters = trained_parameters(lm)
    engine: Any = SimpleNamespace(module=lm, deepspeed=None, optimizer=torch.optim.AdamW(parameters.values()), stage=0)
    state = TrainingState(engine, parameters)
    with pytest.raises(ValueError, match=r"is of another model: \S+lora_A.weight is \(4, 128\) there, \(8, 128\) here"):
        state.load(folder / "0-float32")


SMALL = [
    *("run.steps=3", "run.name=run", "learner.lora.rank=4", "learner.lr=2e-3", "learner.warmup_steps=0"),
    *("algorithm.prompts_per_step=16", "algorithm.kl_coef=0.01", "data.train_size=100", "checkpoint.policy=true"),
    *("eval.at_start=false", "eval.at_end=false", "rollout.max_concurrent_sequences=256"),
]


def test_a_run_with_real_engines(tmp_path: Path) -> None:
    done = maxpo("train", "configs/presets/demo.yaml", f"run.dir={tmp_path}", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr  # every engine has confirmed every tensor after each step
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "train/loss" in row]
    assert len(steps) == 3
    # Engines sample from the merged weights with the probabilities that the learner computes with the adapter apart.
    assert all(row["mismatch/logprob_abs"] < 1e-4 for row in steps)
    assert steps[-1]["policy/reference_kl"] > 1e-3

    policy = load_file(run / "policy" / "model.safetensors")
    base = {name: p.detach() for name, p in plain_model().named_parameters()}
    adapter = load_file(run / "policy" / "adapter" / "adapter_model.safetensors")
    about = json.loads((run / "policy" / "adapter" / "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"], len(about["target_modules"])) == (4, 32.0, 7)
    assert set(policy) == set(base)
    for name, weight in base.items():
        pair = [adapter.get(f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight") for side in "AB"]
        want = weight
        if pair[0] is not None and pair[1] is not None:
            want = want + (pair[1] @ pair[0]) * (32.0 / 4)
            assert float((want - weight).abs().max()) > 1e-3, name
        assert torch.equal(policy[name], want), name
    assert len(adapter) == 2 * 7 * 3

    config = load_config([run / "config.yaml"], []).config
    source = export_checkpoint(config, run, None, tmp_path / "exported")
    assert source == Checkpoints(run / "checkpoints").newest_good()[0]
    for other in (tmp_path / "exported", source / "policy"):
        assert_equal(load_file(other / "model.safetensors"), policy)
        assert_equal(load_file(other / "adapter" / "adapter_model.safetensors"), adapter)
    # On another base the adapter means something else.
    shutil.copytree(run / "policy", tmp_path / "other")
    config.model.path = str(tmp_path / "other")
    with pytest.raises(InputError, match="are not those that the adapter of the checkpoint was trained on"):
        export_checkpoint(config, run, None, tmp_path / "again")
    trained = [key for file in (source / "learner").glob("*.safetensors") for key in load_file(file)]
    assert len(trained) == 3 * len(adapter)
