"""Settings of the section `learner`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from omegaconf import MISSING

from maxpo.config.lora import LoraConfig


@dataclass(kw_only=True)
class LearnerConfig:
    """The DeepSpeed ranks that train."""

    ranks: int = 1
    """Learner processes, one GPU each (on CPU: one process each)."""
    sequence_parallel: int = 1
    """Ranks that share each packed row (DeepSpeed Ulysses), for long completions: activations of `token_budget` tokens
    are spread over them. Must divide `ranks` and the model's attention heads, those of keys and values too."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the learner runs; auto: CUDA where torch has it."""
    cpu_threads: int = 1
    """Threads per learner process on CPU."""
    zero_stage: int = 2
    """DeepSpeed ZeRO stage, 0 to 3."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of forward and backward; master weights and optimizer state are float32 either way."""
    lr: float = MISSING
    """Peak learning rate of AdamW."""
    warmup_steps: int = 5
    """Optimizer steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up; linear and cosine end at 0 with the last step."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """AdamW's betas, two numbers."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """An optimizer step whose loss or gradient is not finite is not taken: stop the run there, or skip it and go on."""
    token_budget: int = 16384
    """Most tokens of one packed microbatch. A longer single sequence is an error before the start."""
    logprob_chunk: int = 2048
    """Tokens whose logits are held at once; memory grows with chunk x vocabulary."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    deepspeed: str | None = None
    """JSON file with further DeepSpeed settings (offload, buckets), merged below the ones of this section."""
    start_timeout_s: float = 600.0
    """Seconds that the learner may take to start."""
    step_timeout_s: float = 1800.0
    """Seconds that one update may take."""
    max_restarts: int = 3
    """How often a learner that died, or hung, is started again from the newest checkpoint before the run stops."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Train an adapter only; a section of its own."""
