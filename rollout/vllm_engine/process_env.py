"""Environment variables of the processes of an engine."""

from __future__ import annotations

from maxpo.config import RolloutConfig

COMPUTE_ON_CPU = {
    # Idle OpenMP threads that spin would take the core from other processes.
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    # Fresh memory comes in huge pages, which costs a third of the time. Learner and engines allocate much of it.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Environment variables of every process that computes on CPU, learner ranks included."""

CPU_ENVIRONMENT = COMPUTE_ON_CPU | {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the default puts every engine on the first core
    "TORCHDYNAMO_DISABLE": "1",  # eager mode compiles two sampling helpers for 20 s otherwise
    "OMP_NUM_THREADS": "1",
}


def environment_variables(config: RolloutConfig, device: str) -> dict[str, str]:
    """Return the environment variables of a worker's process, which must be set before its first import."""
    common = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "maxpo_weight_receivers",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device == "cuda":
        return common
    cpu = common | CPU_ENVIRONMENT | {"VLLM_CPU_KVCACHE_SPACE": str(config.cpu_kv_cache_gib)}
    if config.tensor_parallel_size == 1:
        # Otherwise vLLM's CPU platform puts the model into another process, which spins while it waits for messages.
        cpu["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return cpu
