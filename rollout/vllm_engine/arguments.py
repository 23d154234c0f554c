"""Arguments of a vLLM engine, and checks of `rollout.engine_args` without an import of vllm."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maxpo.config import RolloutConfig
from maxpo.wording import did_you_mean

WIRE_BACKENDS = {"shm": "gloo", "gloo": "gloo", "nccl": "maxpo_nccl", "ipc": "maxpo_ipc"}
"""`sync.backend` -> name of the receiver that `rollout.plugin` registers."""


def default_arguments(config: RolloutConfig, *, device: str, max_model_len: int) -> dict[str, Any]:
    """Return the arguments that `rollout.engine_args` may replace."""
    if device == "cuda":
        return {}
    return {"max_num_batched_tokens": max(8192, max_model_len, config.max_concurrent_sequences)}


def fixed_arguments(
    model_path: str,
    config: RolloutConfig,
    *,
    device: str,
    sync_backend: str,
    max_model_len: int,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Return the arguments that have settings of their own, or that the framework relies on."""
    args: dict[str, Any] = {
        "model": model_path,
        "trust_remote_code": trust_remote_code,
        "dtype": config.dtype,
        "tensor_parallel_size": config.tensor_parallel_size,
        "max_model_len": max_model_len,
        "max_num_seqs": config.max_concurrent_sequences,
        "enforce_eager": config.enforce_eager or device == "cpu",
        "disable_log_stats": True,
        # Log-probabilities of the distribution that was sampled from: after temperature, over the kept tokens.
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": {"backend": WIRE_BACKENDS[sync_backend]},
        "worker_extension_cls": "rollout.vllm_engine.weight_receiver.WorkerExtension",
        # One process: the engine's own; on CPU see also `rollout.vllm_engine.process_env.environment_variables`.
        # Several: inside a placement group vLLM would spread its processes by Ray itself.
        "distributed_executor_backend": "uni" if config.tensor_parallel_size == 1 else "mp",
    }
    if device == "cuda":
        args["gpu_memory_utilization"] = config.gpu_memory_utilization
        args["enable_sleep_mode"] = sync_backend == "ipc"  # it shares the GPU with the learner
    else:
        # Whole prompts only: where a prompt is cut in two, vLLM 0.32 rewinds the seeded generator of the
        # request, which torch's CPU generators cannot do, and the engine dies.
        args["enable_chunked_prefill"] = False
    return args


def argument_problems(config: RolloutConfig, device: str) -> Iterator[str]:
    """Yield the names in `rollout.engine_args` that vLLM does not know, or that the run sets itself."""
    fixed = fixed_arguments("", config, device=device, sync_backend="gloo", max_model_len=1)
    known = engine_fields()
    for name in config.engine_args:
        if name in fixed:
            yield (
                f"rollout.engine_args.{name}: a run sets this argument of vLLM itself, most by settings of their own "
                "(maxpo config explain rollout): leave it out"
            )
        elif known and name not in known:
            yield f"rollout.engine_args.{name}: vLLM's AsyncEngineArgs has no such field.{did_you_mean(name, known)}"


def engine_fields() -> list[str]:
    """Return the names of the arguments of an engine, read from the source of the installed vLLM. Empty without it.

    An import of vllm takes many seconds and changes the process.
    """
    spec = importlib.util.find_spec("vllm")
    folders = spec.submodule_search_locations if spec else None
    files = [Path(folder, "engine", "arg_utils.py") for folder in folders or ()]
    tree = [node for file in files if file.is_file() for node in ast.parse(file.read_text(encoding="utf-8")).body]
    return [
        line.target.id
        for node in tree
        if isinstance(node, ast.ClassDef) and node.name in ("EngineArgs", "AsyncEngineArgs")
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    ]
