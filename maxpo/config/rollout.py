"""Settings of the sections `rollout` and `sync`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from omegaconf import MISSING

from maxpo.config.ranges import COUNT, COUNT_OR_NONE, FACTOR, PROCESSES, SECONDS, Arguments, Must, between


@dataclass(kw_only=True)
class RolloutConfig:
    """The vLLM engines that sample."""

    workers: Annotated[int, PROCESSES] = 1
    """Number of vLLM engines, each in its own Ray actor."""
    tensor_parallel_size: Annotated[int, between(1, 1024)] = 1
    """GPUs per engine. On CPU: processes per engine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the engines. auto: CUDA if the installed vLLM and the machine have CUDA, else CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of the engines' weights and activations. Sampler and learner differ least if `learner.dtype` is the
    same (`benchmarks/dtypes.py` measures the difference)."""
    max_mismatch_kl: Annotated[float | None, FACTOR] = 0.1
    """Largest `mismatch/kl`, the mean of exp(d) - 1 - d over tokens, d the difference of log-probabilities between
    learner and sampler in nats. The run stops above it, in training and in evaluation. bfloat16 gives about 0.002, a
    mixture of experts several times as much. With `pipeline.max_staleness` above 0 the limit is for tokens of the
    current weights: older ones differ because the policy has moved on. null: no limit."""
    max_new_tokens: Annotated[int, COUNT] = MISSING
    """Longest completion in tokens."""
    temperature: Annotated[
        float, between(0.01, 100, "vLLM raises lower temperatures to 0.01, and the learner would not")
    ] = 1.0
    """Sampling temperature. The log-probabilities of sampler and learner include the temperature. The sampler always
    draws from the full distribution, without top-p or top-k, because the learner's ratio is over all tokens."""
    max_concurrent_sequences: Annotated[int, between(1, 10**6)] = 256
    """Largest number of sequences that one engine decodes at once."""
    overcommit: Annotated[float, between(1, 64)] = 4.0
    """Sequences that a worker holds, as a multiple of `max_concurrent_sequences`. With 1 a group keeps its places until
    its longest completion ends. 3 to 4 fills them, where lengths vary and a step has more sequences than the engines
    have places (`benchmarks/pipeline.py`). The time limit of a group grows with what it waits for."""
    gpu_memory_utilization: Annotated[float, Must(lambda v: 0 < v <= 1, "Must be more than 0 and at most 1.")] = 0.85
    """Share of GPU memory that an engine may use. No effect on CPU."""
    cpu_kv_cache_gib: Annotated[int, between(1, 10**5)] = 1
    """KV cache of an engine on CPU, GiB. No effect on GPU."""
    enforce_eager: bool = False
    """Do not capture CUDA graphs. No effect on CPU, which is always eager."""
    generate_timeout_s: Annotated[float, SECONDS] = 600.0
    """Timeout of the generation of one group, seconds. A group that has to wait for places has their time too."""
    max_restarts: Annotated[int, COUNT_OR_NONE] = 10
    """Largest number of lost workers within `restart_window_s` that are replaced. One more stops the run."""
    restart_window_s: Annotated[float, SECONDS] = 600.0
    """Length of the window in which lost workers are counted, seconds."""
    health_timeout_s: Annotated[float, SECONDS] = 60.0
    """Seconds without a sign of life after which a worker counts as lost. Engines answer between two forward passes.
    While groups are sampled, a worker is asked six times in this time, for the first time this long after its start."""
    engine_args: Arguments = field(default_factory=Arguments)
    """Further arguments of the vLLM engine, passed unchanged."""


@dataclass(kw_only=True)
class SyncConfig:
    """The transfer of new weights to the engines."""

    backend: Literal["auto", "shm", "gloo", "nccl", "ipc"] = "auto"
    """Transport of the weights: shm (CPU, shared memory for engines on the learner's host and gloo for others), gloo
    (CPU, TCP), nccl (separate GPUs), ipc (learner and engine share one GPU)."""
    bucket_mib: Annotated[int, between(1, 10**6)] = 64
    """Size of one packed bucket, MiB."""
    timeout_s: Annotated[float, SECONDS] = 300.0
    """Timeout of one sync, seconds. After the timeout the run stops and names the processes that are missing."""
