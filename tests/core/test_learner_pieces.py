"""Parts of the learner that need no process group."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from learner.engine import deepspeed_config
from learner.model import RowLayout, load_language_model, packed_attention
from learner.step import learning_rate
from maxpo.config import LearnerConfig


def test_learning_rate_by_hand() -> None:
    def rates(schedule: str, warmup: int = 2) -> list[float]:
        config = LearnerConfig(lr=1.0, warmup_steps=warmup, schedule=schedule)
        return [learning_rate(config, step, 6) for step in range(6)]

    assert rates("constant") == [0.5, 1, 1, 1, 1, 1]
    assert rates("linear") == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    assert rates("cosine") == pytest.approx([0.5, 1, 1, 0.5 + 2**0.5 / 4, 0.5, 0.5 - 2**0.5 / 4])
    assert rates("constant", warmup=0) == [1.0] * 6


def test_packed_attention_is_attention_of_each_sequence_alone() -> None:
    lengths = [1, 7, 2, 33, 8, 9, 1, 16]
    total = sum(lengths)
    q = torch.randn(1, 4, total, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    k, v = torch.randn(2, 1, 2, total, 8, generator=torch.Generator().manual_seed(1))
    row = RowLayout.of(lengths, torch.device("cpu"))
    out, _ = packed_attention(torch.nn.Identity(), q, k, v, None, scaling=0.3, row=row)
    start = 0
    for n in lengths:
        part = slice(start, start + n)
        alone = F.scaled_dot_product_attention(
            q[:, :, part], k[:, :, part], v[:, :, part], is_causal=True, scale=0.3, enable_gqa=True
        )
        torch.testing.assert_close(out[:, part], alone.transpose(1, 2))
        start += n
    # No gradient from one sequence into another.
    (grad,) = torch.autograd.grad(out[:, 1:8].sum(), q)
    assert float(grad[:, :, 1:8].abs().sum()) > 0
    assert float(grad[:, :, 8:].abs().sum()) == float(grad[:, :, :1].abs().sum()) == 0
    # Padding at most doubles the work, whatever the mixture.
    assert sum(block.numel() for block in row.blocks) <= 2 * total


def test_a_model_that_rescales_its_logits_is_refused(tmp_path: Path) -> None:
    source = Path("configs/models/countdown-0.5m")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text()) | {"final_logit_softcapping": 30.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        load_language_model(str(tmp_path), torch.float32, trust_remote_code=False)


def test_the_users_deepspeed_settings_lie_below_those_of_the_run(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(
        json.dumps(
            {
                "zero_optimization": {"stage": 1, "reduce_bucket_size": 7, "compute_grad_norm": False},
                "wall_clock_breakdown": True,
                "gradient_clipping": 9.0,
            }
        )
    )
    merged = deepspeed_config(LearnerConfig(lr=1.0, zero_stage=3, deepspeed=str(file), grad_clip=0.5), world_size=4)
    assert merged["zero_optimization"] == {"stage": 3, "reduce_bucket_size": 7, "compute_grad_norm": True}
    assert merged["wall_clock_breakdown"] is True
    assert merged["gradient_clipping"] == 0.5
    assert merged["train_batch_size"] == 4
