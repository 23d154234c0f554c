"""The presets for GPUs: every check before a start, and memory of 80 GiB GPUs, for models of the sizes they name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launch.cli import main

QWEN = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 32768}
SHAPES = {
    "1.54 B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7.62 B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "32.76 B": {
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
"""By the number of parameters on the model cards of Qwen2.5: the shapes in their config.json."""


@pytest.mark.parametrize(
    ("preset", "size", "where"),
    [
        ("one_gpu", "1.54 B", "1 x 80 GiB of GPU: learner and engines share them, ZeRO stage 2"),
        ("eight_gpus", "7.62 B", "8 x 80 GiB of GPU: learner and engines share them, ZeRO stage 2"),
        ("four_nodes", "32.76 B", "32 x 80 GiB of GPU: 16 for the learner, ZeRO stage 3"),
    ],
)
def test_a_preset_passes_the_checks_and_fits(
    preset: str, size: str, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo, model = Path("configs/models/countdown-0.5m"), tmp_path / "model"
    model.mkdir()
    for file in demo.glob("*token*"):
        shutil.copy(file, model)
    (model / "config.json").write_text(json.dumps(QWEN | SHAPES[size]))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{i} 7 2=13:", "answer": i}) + "\n" for i in range(200)))
    words = [f"configs/presets/{preset}.yaml", f"model.path={model}"]
    words += [f"data.{split}_file={rows}" for split in ("train", "eval")]
    assert main(["train", *words, "--dry-run"]) == 0
    assert "everything checked, nothing started" in capsys.readouterr().out
    assert main(["plan", *words]) == 0
    said = capsys.readouterr().out
    assert f"{size} parameters; {where}" in said and "NO" not in said
    # The plan does not say yes to everything, and what it proposes is allowed.
    assert main(["plan", *words, "--gpu-gib", "24"]) == 1
    _, _, proposed = capsys.readouterr().out.partition("any one of these would make it fit: ")
    for remedy in proposed.split():
        assert main(["plan", *words, "--gpu-gib", "24", remedy]) == 0, remedy
    if preset == "four_nodes":
        assert main(["submit", "slurm", *words, "run.dir=/shared/runs", "--dry-run"]) == 0
        script = capsys.readouterr().out
        assert "#SBATCH --nodes=4\n" in script and "#SBATCH --gpus-per-node=8\n" in script
