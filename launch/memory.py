"""The command `maxpo plan`: GPU memory of a run, and the settings that would make the run fit.

Arithmetic only: the model is built without memory to count its parameters, no GPU is needed. Model states are exact up
to allocation; activations follow Korthikanti et al. 2022 (Reducing activation recomputation in large transformer
models, arXiv 2205.05198, eq. 2) without the part that attention kernels do not keep, and are an estimate.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from launch.cluster.placement import place
from launch.terminal.printing import say
from learner.model.lora import adapter_parameters
from maxpo.config import Config, LearnerConfig, LoraConfig
from maxpo.configure.rules.cluster import CLUSTER_COMBINATIONS
from maxpo.errors import InputError

GIB = 2**30
CONTEXT_GIB = 1.0
"""GPU memory of CUDA, NCCL and the allocator's fragments beside all tensors."""
KEPT = ("weights", "gradients", "master weights", "Adam's moments", "frozen reference", "buckets")
"""Parts of the learner's memory that stay allocated between two updates."""
BUCKET = 5 * 10**8
"""Elements of DeepSpeed's default bucket for reducing gradients. It exists with one rank, too."""
SUB_GROUP = 10**9
"""Elements that ZeRO-3 updates at once by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a model that determine its memory."""

    parameters: int
    largest_layer: int
    """Parameters of the largest module that ZeRO-3 gathers at once: a layer, or the embedding."""
    layers: int
    hidden: int
    kv_width: int
    """Number of key and value heads times head size."""
    vocabulary: int
    adapter: int = 0
    """Number of parameters that `learner.lora` adds."""


def shape_of(path: str, lora: LoraConfig | None = None, *, trust_remote_code: bool = False) -> ModelShape:
    """Return the sizes of the model in a folder, from its config.json.

    Raises:
        InputError: The file is unreadable, the model is not a causal language model, or a layer of `lora` is missing.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
        with torch.device("meta"):
            lm: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    # The files of a model, and code that comes with it, may fail in any way.
    except Exception as error:
        raise InputError(f"model.path = {path} cannot be loaded: {type(error).__name__}: {error}") from error
    modules = [m for m in lm.modules() if type(m).__name__.endswith(("DecoderLayer", "Embedding"))]
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelShape(
        parameters=sum(p.numel() for p in lm.parameters()),
        largest_layer=max(sum(p.numel() for p in m.parameters()) for m in modules),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        kv_width=(getattr(config, "num_key_value_heads", None) or heads) * head_size,
        vocabulary=config.vocab_size,
        adapter=adapter_parameters(lm, lora) if lora and lora.rank else 0,
    )


def learner_bytes(config: Config, shape: ModelShape) -> dict[str, float]:
    """Return the bytes of each learner GPU by purpose."""
    c = config.learner
    n = shape.parameters + shape.adapter
    trained = shape.adapter if c.lora.rank else n
    ranks = c.ranks
    width = 4 if c.dtype == "float32" else 2
    states = trained / ranks if c.zero_stage else trained
    # In 16 bits DeepSpeed keeps float32 masters beside the weights; in float32 the weights are the masters at stage 0.
    master = 0 if (width == 4 and c.zero_stage == 0) else 4 * states
    layer_tokens = c.token_budget / c.sequence_parallel * shape.hidden * width / 2
    activations = 34 * layer_tokens * (1 if c.gradient_checkpointing else shape.layers)
    activations += 2 * layer_tokens * shape.layers if c.gradient_checkpointing else 0
    return {
        "weights": width * (n / ranks + shape.largest_layer if c.zero_stage == 3 else n),
        "gradients": gradient_bytes(c, shape, trained),
        "master weights": master,
        "Adam's moments": 8 * states,
        "frozen reference": width * n if config.algorithm.kl_coef and not c.lora.rank else 0,
        "activations": activations,
        # Logits of a chunk, their softmax and their gradient, in float32.
        "logits": 3 * 4 * min(c.logprob_chunk, c.token_budget // c.sequence_parallel) * shape.vocabulary,
        # In 16 bits ZeRO-2 has a bucket in the width of the weights, and a copy in float32 to reduce.
        "buckets": (4 + (width if width == 2 == c.zero_stage else 0)) * min(BUCKET, trained) if c.zero_stage else 0,
        "weight sync": 2 * (config.sync.bucket_mib << 20),
    }


def gradient_bytes(learner: LearnerConfig, shape: ModelShape, trained: int) -> float:
    """Return the bytes of the gradients of `trained` parameters on each learner GPU, outside buckets.

    In 16 bits the sum over the microbatches is in float32, and the gradients of one microbatch come and go in the width
    of the weights.
    """
    share = trained / learner.ranks
    layer = min(shape.largest_layer, trained)
    match learner.zero_stage, learner.dtype:
        case 0, _:
            return 4 * trained
        case 1, "bfloat16":
            return (2 + 4) * trained  # the optimizer step reads its share of the sum
        case 1, "float16":
            return (2 + 4) * trained + 4 * share
        case 1, _:
            return 4 * trained + 4 * share
        case 2, "float32":
            return (4 + 4) * share
        case 2, _:
            return 4 * share + 2 * layer
        case _, dtype:
            return 4 * share + 4 * min(share, SUB_GROUP) + (4 if dtype == "float32" else 2) * layer


def rollout_bytes(config: Config, shape: ModelShape, gpu_bytes: float) -> dict[str, float]:
    """Return the bytes of each rollout GPU by purpose. The rest of the engine's share is the KV cache."""
    c = config.rollout
    width = 4 if c.dtype == "float32" else 2
    weights = width * shape.parameters / c.tensor_parallel_size
    # One prefill batch of 8192 tokens, with the logits of the sequences that sample.
    working = 8192 * shape.hidden * width * 8 + 4 * c.max_concurrent_sequences * shape.vocabulary
    left = gpu_bytes * c.gpu_memory_utilization - weights - working
    return {"weights": weights, "working memory": working, "KV cache": max(0.0, left)}


def sequences_at_once(config: Config, shape: ModelShape, kv_cache: float) -> float:
    """Return the number of sequences of full length that fit into an engine's KV cache."""
    c = config.rollout
    width = 4 if c.dtype == "float32" else 2
    per_token = 2 * shape.layers * shape.kv_width * width / c.tensor_parallel_size
    return kv_cache / (per_token * (config.data.max_prompt_tokens + c.max_new_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Memory of a run on GPUs of one size."""

    learner: dict[str, float]
    rollout: dict[str, float]
    sequences: float
    gpu_bytes: float
    shared: bool
    """True if learner and engine share one GPU."""

    @property
    def learner_limit(self) -> float:
        """Bytes of a GPU that the learner may take. An engine on the same GPU sleeps meanwhile."""
        return self.gpu_bytes - CONTEXT_GIB * GIB * (2 if self.shared else 1)

    @property
    def sampling(self) -> float:
        """Bytes of a shared GPU in use during sampling: the engine's, and those that the learner keeps."""
        return sum(self.rollout.values()) + sum(self.learner.get(name, 0) for name in KEPT)

    @property
    def learner_fits(self) -> bool:
        """True if the learner has enough memory, also beside an engine on the same GPU."""
        return max(sum(self.learner.values()), self.sampling if self.shared else 0) <= self.learner_limit

    @property
    def rollout_fits(self) -> bool:
        """True if an engine has memory for at least one sequence of full length."""
        return self.sequences >= 1


def make_plan(config: Config, shape: ModelShape, *, gpu_gib: float, shared: bool) -> Plan:
    """Return the plan for GPUs of this size."""
    rollout = rollout_bytes(config, shape, gpu_gib * GIB)
    return Plan(
        learner=learner_bytes(config, shape),
        rollout=rollout,
        sequences=sequences_at_once(config, shape, rollout["KV cache"]),
        gpu_bytes=gpu_gib * GIB,
        shared=shared,
    )


def remedies(config: Config, shape: ModelShape, *, gpu_gib: float, shared: bool) -> list[str]:
    """Return single settings that would make everything fit, cheapest first. Empty if nothing must or can help."""
    plan = make_plan(config, shape, gpu_gib=gpu_gib, shared=shared)
    if plan.learner_fits and plan.rollout_fits:
        return []
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    learner, rollout = config.learner, config.rollout
    powers = (2, 4, 8, 16, 32, 64)
    choices: dict[str, list[Any]] = {  # of each key the smallest change first
        "learner.gradient_checkpointing": [True],
        "learner.logprob_chunk": [n for n in (1024, 512) if n < learner.logprob_chunk],
        "learner.token_budget": [n for n in (2 * longest, longest) if n < learner.token_budget],
        "learner.zero_stage": [stage for stage in (2, 3) if stage > learner.zero_stage],
        "learner.ranks": [n for n in powers if n > learner.ranks],
        "rollout.tensor_parallel_size": [n for n in powers[:3] if n > rollout.tensor_parallel_size],
        "rollout.gpu_memory_utilization": [0.9, 0.6, 0.5, 0.4, 0.3],
    }
    if shared:  # no other number of GPUs than the run has, and room for both on each
        del choices["learner.ranks"], choices["rollout.tensor_parallel_size"]
        choices["rollout.gpu_memory_utilization"].remove(0.9)
    found: list[str] = []
    for key, values in choices.items():
        for value in values:
            changed = _with(config, key, value)
            if not all(holds(changed) for _, holds, _ in CLUSTER_COMBINATIONS):
                continue
            after = make_plan(changed, shape, gpu_gib=gpu_gib, shared=shared)
            if after.learner_fits and after.rollout_fits:
                found.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
                break
    return found


def show_plan(config: Config, console: Console, *, gpus: int, gpu_gib: float) -> int:
    """Print the plan; returns the exit code: 0 where everything fits, 1 where not.

    Raises:
        InputError: the model folder cannot be read, or there are too few GPUs.
    """
    learner = config.learner
    shape = shape_of(config.model.path, learner.lora, trust_remote_code=config.model.trust_remote_code)
    shared = place(config, gpus=gpus).colocated
    plan = make_plan(config, shape, gpu_gib=gpu_gib, shared=shared)
    table = Table("GiB of each GPU", "learner", "rollout")
    for name in dict.fromkeys((*plan.learner, *plan.rollout)):
        cells = [values.get(name) for values in (plan.learner, plan.rollout)]
        if any(cells):
            table.add_row(name, *("" if value is None else f"{value / GIB:.2f}" for value in cells))
    limits = plan.learner_limit, plan.gpu_bytes * config.rollout.gpu_memory_utilization
    sums = [sum(values.values()) for values in (plan.learner, plan.rollout)]
    table.add_section()
    table.add_row("together", *(f"{value / GIB:.2f}" for value in sums))
    table.add_row("there is", *(f"{value / GIB:.2f}" for value in limits))
    table.add_row("fits", *("yes" if fits else "NO" for fits in (plan.learner_fits, plan.rollout_fits)))
    size = f"{_count(shape.parameters)} parameters" + (
        f" + {_count(shape.adapter)} of an adapter" if learner.lora.rank else ""
    )
    where = "learner and engines share them" if shared else f"{learner.ranks} for the learner"
    console.print(
        f"{size}; {gpus} x {gpu_gib:g} GiB of GPU: {where}, "
        f"ZeRO stage {learner.zero_stage}, {learner.dtype}; rollout.workers = {config.rollout.workers} x "
        f"{config.rollout.tensor_parallel_size}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)
    console.print(
        f"an engine holds {plan.sequences:.0f} sequences of {config.data.max_prompt_tokens} + "
        f"{config.rollout.max_new_tokens} tokens at once (rollout.max_concurrent_sequences = "
        f"{config.rollout.max_concurrent_sequences})",
        highlight=False,
        soft_wrap=True,
    )
    if shared:
        console.print(
            f"engines sleep while the learner trains; while they sample, it keeps some of its memory: together "
            f"{plan.sampling / GIB:.2f} of {plan.learner_limit / GIB:.2f} GiB",
            highlight=False,
            soft_wrap=True,
        )
    if plan.learner_fits and plan.rollout_fits:
        return 0
    found = remedies(config, shape, gpu_gib=gpu_gib, shared=shared)
    text = "any one of these would make it fit: " + "  ".join(found) if found else "no single setting makes it fit"
    say(console, text)
    return 1


def _count(n: int) -> str:
    return f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.2f} M"


def _with(config: Config, key: str, value: Any) -> Config:
    section, name = key.split(".")
    changed = deepcopy(config)
    return replace(changed, **{section: replace(getattr(changed, section), **{name: value})})
