"""Settings of the section `learner`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from omegaconf import MISSING

from maxpo.config.lora import LoraConfig
from maxpo.config.ranges import COUNT, COUNT_OR_NONE, FACTOR_OR_NONE, PROCESSES, SECONDS, Must, above_zero, between


@dataclass(kw_only=True)
class LearnerConfig:
    """The DeepSpeed ranks that train."""

    ranks: Annotated[int, PROCESSES] = 1
    """Number of learner processes, one GPU each. On CPU: number of processes."""
    sequence_parallel: Annotated[int, PROCESSES] = 1
    """Number of ranks that share each packed row (DeepSpeed Ulysses), for long completions: the activations of
    `token_budget` tokens are spread over these ranks. Must divide `ranks` and the numbers of attention heads and of
    key-value heads of the model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the learner. auto: CUDA if torch has CUDA, else CPU."""
    cpu_threads: Annotated[int, PROCESSES] = 1
    """Threads per learner process on CPU."""
    zero_stage: Annotated[int, Must(lambda v: 0 <= v <= 3, "Must be 0, 1, 2 or 3.")] = 2
    """DeepSpeed ZeRO stage, 0 to 3."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of forward and backward passes. Master weights, optimizer state and sums of gradients are always
    float32. float16 is 8 times finer than bfloat16, so sampler and learner differ less if `rollout.dtype` is float16
    too. Its range is small: the loss is multiplied by a scale that adapts itself, and a step whose scaled gradient
    overflows is left out and counted in train/overflow_steps."""
    lr: Annotated[float, above_zero(1, "AdamW moves each weight by about this much in a step")] = MISSING
    """Peak learning rate of AdamW."""
    warmup_steps: Annotated[int, COUNT_OR_NONE] = 5
    """Optimizer steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule of the learning rate after warm-up. linear and cosine end at 0 with the last step."""
    betas: Annotated[
        list[float],
        Must(
            lambda v: len(v) == 2 and all(0 <= b < 1 for b in v),
            "Must be two numbers, each at least 0 and below 1.",
        ),
    ] = field(default_factory=lambda: [0.9, 0.95])
    """AdamW's betas, two numbers."""
    weight_decay: Annotated[float, between(0, 1000)] = 0.0
    """AdamW's decoupled weight decay."""
    grad_clip: Annotated[float, FACTOR_OR_NONE] = 1.0
    """Largest norm of the gradient. 0: no clipping."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Reaction to a loss or gradient that is not finite. The optimizer step is never taken. stop: the run stops. skip:
    the run goes on. In float16, a gradient that overflows while the loss scale can still be lowered does not count."""
    token_budget: Annotated[int, COUNT] = 16384
    """Largest number of tokens of one packed microbatch. A longer single sequence is an error before the start. A row
    holds the prompt of several completions once. For each further completion an eighth of the prompt counts."""
    logprob_chunk: Annotated[int, COUNT] = 2048
    """Number of tokens whose logits are in memory at once. Memory grows with chunk x vocabulary."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    deepspeed: str | None = None
    """JSON file with further DeepSpeed settings (offload, buckets). The settings of this section take precedence.
    In 16 bits, gradients are added up in float32 over microbatches and ranks, unless the file sets `data_types` or
    `communication_data_type`."""
    step_timeout_s: Annotated[float, SECONDS] = 1800.0
    """Timeout of one update, seconds."""
    max_restarts: Annotated[int, COUNT_OR_NONE] = 3
    """Largest number of restarts of a dead or hung learner, each from the newest checkpoint, before the run stops."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapter that is trained in place of the full model, a section within this section."""
