"""The presets for GPUs: every check before a start, and memory of 80 GiB GPUs, for models of the shapes they name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from launch.cli import main
from launch.run.preflight import load_data
from maxpo.configure.loading import load_config
from maxpo.rewards.registry import find_scorer
from tests.sparse_weights import write_sparse_weights


def qwen(family: str, *sizes: int, tied: bool = True, vocabulary: int = 151936) -> dict[str, Any]:
    """A config.json with what counts of it; `sizes`: hidden, intermediate, layers, heads, heads of keys and values."""
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads".split()
    own = {"sliding_window": 32768} if family == "Qwen2" else {"head_dim": 128}
    return dict(zip(names, sizes, strict=True)) | own | {
        "model_type": family.lower(),
        "architectures": [f"{family}ForCausalLM"],
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }  # fmt: skip


MODELS = {
    "Qwen2.5-0.5B-Instruct": ("494.03 M", qwen("Qwen2", 896, 4864, 24, 14, 2)),
    "Qwen2.5-1.5B-Instruct": ("1.54 B", qwen("Qwen2", 1536, 8960, 28, 12, 2)),
    "Qwen2.5-3B-Instruct": ("3.09 B", qwen("Qwen2", 2048, 11008, 36, 16, 2)),
    "Qwen2.5-7B-Instruct": ("7.62 B", qwen("Qwen2", 3584, 18944, 28, 28, 4, tied=False, vocabulary=152064)),
    "Qwen2.5-32B-Instruct": ("32.76 B", qwen("Qwen2", 5120, 27648, 64, 40, 8, tied=False, vocabulary=152064)),
    "Qwen3-0.6B": ("596.05 M", qwen("Qwen3", 1024, 3072, 28, 16, 8)),
    "Qwen3-1.7B": ("1.72 B", qwen("Qwen3", 2048, 6144, 28, 16, 8)),
    "Qwen3-4B": ("4.02 B", qwen("Qwen3", 2560, 9728, 36, 32, 8)),
}
"""The shapes in the config.json of each, and the number of parameters that its model card rounds."""
TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
"""ChatML as Qwen3 writes it for messages of users and systems: without thinking, after an empty thinking block."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each of the models: the shape of the real one, one token for each character, no weights."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained("configs/models/countdown-0.5m")
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = TEMPLATE
    for name, (_, settings) in MODELS.items():
        tokenizer.save_pretrained(folder / name)
        (folder / name / "config.json").write_text(json.dumps(settings))
        write_sparse_weights(folder / name)
    return folder


@pytest.mark.parametrize(
    ("preset", "model", "where"),
    [
        ("one_gpu", "Qwen2.5-1.5B-Instruct", "1 x 80 GiB of GPU: learner and engines share them, ZeRO stage 2"),
        ("eight_gpus", "Qwen2.5-7B-Instruct", "8 x 80 GiB of GPU: learner and engines share them, ZeRO stage 2"),
        ("four_nodes", "Qwen2.5-32B-Instruct", "32 x 80 GiB of GPU: 16 for the learner, ZeRO stage 3"),
    ],
)
def test_a_preset_passes_the_checks_and_fits(
    preset: str,
    model: str,
    where: str,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{i} 7 2=13:", "answer": i}) + "\n" for i in range(200)))
    words = [f"configs/presets/{preset}.yaml", f"model.path={models / model}", f"run.dir={tmp_path}"]
    if preset == "four_nodes":
        words.append("ray.address=10.0.0.1:6379")
    have_gpus(monkeypatch, 8)
    words += [f"data.{split}_file={rows}" for split in ("train", "eval")]
    assert main(["train", *words, "--dry-run"]) == 0
    assert "checked, nothing started" in capsys.readouterr().out
    assert main(["plan", *words]) == 0
    said = capsys.readouterr().out
    assert f"{MODELS[model][0]} parameters; {where}" in said and "NO" not in said
    # The plan does not say yes to everything, and what it proposes is allowed.
    assert main(["plan", *words, "--gpu-gib", "24"]) == 1
    _, _, proposed = capsys.readouterr().out.partition("any one of these would make it fit: ")
    for remedy in proposed.split():
        assert main(["plan", *words, "--gpu-gib", "24", remedy]) == 0, remedy
    if preset == "four_nodes":
        assert main(["submit", "slurm", *words, "run.dir=/shared/runs", "--dry-run"]) == 0
        script = capsys.readouterr().out
        assert "#SBATCH --nodes=4\n" in script and "#SBATCH --gpus-per-node=8\n" in script


def have_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let this machine seem to have GPUs, as one on which such a run starts."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)


def table() -> dict[str, list[str]]:
    """The rows of the table in docs/presets.md, by preset."""
    text = Path("docs/presets.md").read_text()
    rows = [re.findall(r"[^|`\s]+", line) for line in text.splitlines() if line.startswith("| `")]
    return {preset: cells for preset, *cells in rows}


def test_the_table_has_every_preset_for_qwen() -> None:
    assert sorted(table()) == sorted(path.stem for path in Path("configs/presets").glob("qwen*.yaml"))


@pytest.mark.parametrize("preset", table())
def test_a_preset_for_qwen(
    preset: str, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    have_gpus(monkeypatch, int(table()[preset][2]))
    file = Path(f"configs/presets/{preset}.yaml")
    model, data, gpus, training, sampling, sequences = table()[preset]
    assert f"hf download Qwen/{model} --local-dir models/{model}\n" in file.read_text()
    written = yaml.safe_load(file.read_text())
    assert written["model"]["path"] == f"models/{model}"
    assert written["data"]["train_file"] == f"data/{data.lower()}/train.parquet"
    assert written["data"]["eval_file"] == f"data/{data.lower()}/test.parquet"

    sample = f"configs/data/{data.lower()}_sample"
    words = [f"model.path={models / model}", "eval.prompts=8"]
    words += [f"data.train_file={sample}_train.parquet", f"data.eval_file={sample}_test.parquet"]
    assert main(["train", str(file), *words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"training: {sample}_train.parquet: 16 prompts\n" in said
    assert "everything checked, nothing started" in said

    assert main(["plan", str(file), *words, "--gpus", gpus, "--gpu-gib", "80"]) == 0
    said = capsys.readouterr().out
    assert f"{MODELS[model][0]} parameters; {gpus} x 80 GiB of GPU: learner and engines share them" in said
    assert re.search(rf"together +│ {training} ", said) and f"together {sampling} of 78.00 GiB" in said
    assert f"an engine holds {sequences} sequences" in said

    config = load_config([file], words).config
    train, held_out = load_data(config)
    judge = find_scorer(config.reward)
    for prompt in (*train, *held_out):
        assert ("\\boxed{}" in prompt.text, "####" in prompt.text) == (data == "MATH", data == "GSM8K")
        assert prompt.text.startswith("<|im_start|>system\n") == (data == "MATH")
        thinks = "Qwen2.5" in model or config.data.template_args["enable_thinking"]
        assert prompt.text.endswith("assistant\n" if thinks else "assistant\n<think>\n\n</think>\n\n")
        answer = rf"\boxed{{{prompt.reference}}}" if data == "MATH" else f"#### {prompt.reference}"
        assert judge(prompt, f"<think>\nFirst...\n</think>\n\nSo it is {answer}").reward == 1
        assert judge(prompt, r"So it is $\boxed{123456}$, or #### 123456").reward == 0
