"""Settings of the sections `rollout` and `sync`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING


@dataclass(kw_only=True)
class RolloutConfig:
    """The vLLM engines that sample."""

    workers: int = 1
    """Number of vLLM engines, each in its own Ray actor."""
    tensor_parallel_size: int = 1
    """GPUs per engine (on CPU: processes per engine)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the engines run; auto: CUDA where the installed vLLM and the machine have it."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of the engines' weights and activations."""
    max_new_tokens: int = MISSING
    """Longest completion in tokens."""
    temperature: float = 1.0
    """Sampling temperature; the log-probabilities of sampler and learner include it."""
    top_p: float = 1.0
    """Nucleus sampling. Only 1.0 is accepted in training: the learner's ratio is over the full distribution."""
    top_k: int = 0
    """Top-k sampling; 0 is off. Only 0 is accepted in training, for the same reason."""
    max_concurrent_sequences: int = 256
    """Sequences that one engine decodes at once; the pool keeps each engine supplied with about this many."""
    gpu_memory_utilization: float = 0.85
    """Share of GPU memory that an engine may take. No effect on CPU."""
    cpu_kv_cache_gib: int = 1
    """KV cache of an engine on CPU, GiB. No effect on GPU."""
    enforce_eager: bool = False
    """Do not capture CUDA graphs. No effect on CPU, which is always eager."""
    start_timeout_s: float = 600.0
    """Seconds that an engine may take to start."""
    generate_timeout_s: float = 600.0
    """Seconds that one group may take to generate."""
    max_restarts: int = 10
    """Lost workers within `restart_window_s` that are replaced; with one more the run stops."""
    restart_window_s: float = 600.0
    """Seconds within which lost workers are counted."""
    health_interval_s: float = 10.0
    """Seconds between two questions, while groups are sampled, whether an engine still answers."""
    health_timeout_s: float = 60.0
    """Seconds without an answer after which a worker counts as lost; engines answer between two forward passes."""
    health_grace_s: float = 60.0
    """Seconds after its start in which a worker is not asked."""
    engine_args: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further vLLM engine arguments, passed as they are."""


@dataclass(kw_only=True)
class SyncConfig:
    """How new weights reach the engines."""

    backend: Literal["auto", "gloo", "nccl", "ipc"] = "auto"
    """How weights travel: gloo (CPU), nccl (GPUs apart), ipc (learner and engine share one GPU)."""
    bucket_mib: int = 64
    """Size of one packed bucket, MiB."""
    timeout_s: float = 300.0
    """Seconds that one sync may take before the run stops with the name of who is missing."""
