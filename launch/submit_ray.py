"""The command `maxpo submit ray`: a run as a job of a running Ray cluster, through its dashboard."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import logging
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

import maxpo
from launch.rayenv import TOKEN_PATH, use_token
from launch.signals import INTERRUPTED, PREEMPTED
from maxpo.config import Config
from maxpo.configload import LoadedConfig, to_yaml
from maxpo.errors import InputError, RunError

PACKAGES = ("maxpo", "rollout", "learner", "launch")
PATHS = ("model.path", "data.train_file", "data.eval_file", "learner.deepspeed")
LIMIT_MIB = 100
"""Most that is sent along with a job; Ray keeps it in the head's memory."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
CONNECT_S = 5.0
LOST_S = 120.0
"""Seconds without an answer of the dashboard after which a job is no longer followed."""


def submit(
    loaded: LoadedConfig, words: list[str], console: Console, *, address: str | None, detach: bool, dry_run: bool
) -> int:
    """Send the run to the cluster and follow it; the job's exit code, or 0 where it is not followed.

    Args:
        loaded: the settings; files with absolute paths are the cluster's.
        words: the command line behind `submit ray`, to tell how the run is resumed.
        console: where everything is said.
        address: URL of the dashboard; None: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS where it is a URL.
        detach: return when the job is accepted.
        dry_run: only say what would be sent.

    Raises:
        InputError: something given is wrong, or the cluster cannot be used.
        RunError: contact with the cluster was lost, or the job never started.
    """
    config = loaded.config
    url = dashboard(address)
    _check_folder(config)
    with packed(loaded) as (folder, sent):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
        if size > LIMIT_MIB:
            raise InputError(
                f"what goes along with the job ({', '.join(sent)}) has {size:.0f} MiB; allowed are {LIMIT_MIB} MiB: "
                "put models and data on storage that the whole cluster sees, and give their absolute paths"
            )
        command = entrypoint(config)
        env = job_environment(config)
        if dry_run:
            console.print(to_yaml(loaded), highlight=False, markup=False, soft_wrap=True)
            _say(console, f"to {url}: {command}")
            _say(console, f"environment: {env}")
            _say(console, f"goes along ({size:.1f} MiB): {', '.join(sent)}")
            _say(console, "dry run: nothing was sent")
            return 0
        token = use_token(required=config.ray.require_token)
        if token and url.startswith("http:") and urllib.parse.urlsplit(url).hostname not in LOOPBACK:
            _say(console, f"warning: the token goes to {url} unencrypted; safer is an ssh tunnel to its loopback")
        check_dashboard(url, token, require_token=config.ray.require_token)
        from ray.job_submission import JobSubmissionClient  # reads the environment that use_token has set

        for name in ("dashboard_sdk", "job.sdk"):  # they tell of every upload and every stream
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        client: Any = JobSubmissionClient(url)
        name = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', config.run.name)}-{secrets.token_hex(4)}"
        try:
            job = client.submit_job(
                entrypoint=command,
                submission_id=name,
                runtime_env={"working_dir": str(folder), "env_vars": env},
                metadata={"maxpo_run": config.run.name},
            )
        except (RuntimeError, OSError) as error:
            raise InputError(f"the cluster at {url} did not take the job: {error}") from error
    where = f"--address {url}"
    again = shlex.join(word for word in words if not word.startswith("checkpoint.resume=") and word != "--detach")
    _say(console, f"job             {job}")
    _say(console, f"run folder      {Path(config.run.dir) / config.run.name}")
    _say(console, f"follow          ray job logs {where} --follow {job}")
    _say(console, f"stop and save   ray job stop {where} --no-wait {job}")
    _say(console, f"resume          maxpo submit ray {again} checkpoint.resume=must")
    if detach:
        return 0
    try:
        return _follow(client, job, console)
    except KeyboardInterrupt:
        _say(console, "the job goes on; see above for how to follow and stop it")
        return INTERRUPTED


def dashboard(address: str | None) -> str:
    """The URL of the dashboard.

    Raises:
        InputError: it is not given, or is something else.
    """
    named = "--address" if address else "RAY_API_SERVER_ADDRESS"
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not found and "://" in os.environ.get("RAY_ADDRESS", ""):
        named, found = "RAY_ADDRESS", os.environ["RAY_ADDRESS"]
    if not found:
        raise InputError("no cluster is named: give the URL of its dashboard, --address http://127.0.0.1:8265")
    parts = urllib.parse.urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"{named} = {found}: must be the URL of the cluster's dashboard, such as http://127.0.0.1:8265 (of a head "
            "far away through `ssh -L 8265:127.0.0.1:8265 HEAD`)"
        )
    return found.rstrip("/")


def _check_folder(config: Config) -> None:
    if not Path(config.run.dir).is_absolute():
        raise InputError(
            f"run.dir = {config.run.dir} is relative, and a job's own folder on the cluster is thrown away: give a "
            "folder that all nodes see, such as run.dir=/shared/runs"
        )


def entrypoint(config: Config) -> str:
    """The shell command of the job."""
    steps = [*config.launch.setup, "exec python -m launch.cli train config.yaml"]
    return " && ".join(steps)


def job_environment(config: Config) -> dict[str, str]:
    """Environment variables of the job: those of the settings, and the time to save when it is stopped."""
    wait = {"RAY_JOB_STOP_WAIT_TIME_S": str(int(config.checkpoint.stop_within_s) + 60)}
    return {name: str(value) for name, value in config.launch.env.items()} | wait


@contextmanager
def packed(loaded: LoadedConfig) -> Iterator[tuple[Path, list[str]]]:
    """A folder with the code, the settings and the files of relative paths, and what of them is worth telling.

    Raises:
        InputError: a relative path is not there, or leads out of this folder.
    """
    config, sent = loaded.config, [f"maxpo {maxpo.__version__}", "config.yaml"]
    with tempfile.TemporaryDirectory(prefix="maxpo-submit-") as made:
        folder = Path(made)
        for package in PACKAGES:
            source = Path(__file__).resolve().parents[1] / package
            shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        _copy_metadata(folder)
        tree = loaded.tree.copy()
        OmegaConf.update(tree, "ray.address", "auto")
        settings = LoadedConfig(config=config, tree=tree, origin=loaded.origin)
        (folder / "config.yaml").write_text(to_yaml(settings), encoding="utf-8")
        for key in PATHS:
            section, name = key.split(".")
            path = getattr(getattr(config, section), name)
            if path is not None and not Path(path).is_absolute():
                _copy(Path(path), folder, f"{key} = {path}")
                sent.append(path)
        verifier = config.reward.verifier.partition(":")[0] if ":" in config.reward.verifier else None
        if verifier and (own := _own_module(verifier.partition(".")[0])):
            _copy(own, folder, f"reward.verifier = {config.reward.verifier}")
            sent.append(str(own))
        yield folder, sent


def _copy(source: Path, folder: Path, what: str) -> None:
    here = Path.cwd().resolve()
    if not source.exists() or here not in source.resolve().parents:
        raise InputError(
            f"{what}: relative paths go along with the job, so they must be inside {here}; what the cluster has itself "
            "needs an absolute path"
        )
    target = folder / source
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _own_module(name: str) -> Path | None:
    """The file or folder of a module in the current folder; None where the module is from elsewhere."""
    for candidate in (Path(name), Path(f"{name}.py")):
        if candidate.exists():
            return candidate
    return None


def _copy_metadata(folder: Path) -> None:
    """What makes vLLM find the weight receivers, also where the cluster has no maxpo of its own."""
    found = importlib.metadata.distribution("maxpo")
    target = folder / f"maxpo-{found.version}.dist-info"
    target.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        (target / name).write_text(found.read_text(name) or "", encoding="utf-8")


def check_dashboard(url: str, token: str | None, *, require_token: bool) -> None:
    """Ask the dashboard for its list of jobs, with the token and without.

    Raises:
        InputError: nobody answers, the token is wrong, or everybody is let in and `require_token` is on.
    """
    if _answer(url, token) in (401, 403):
        text = "does not accept this token" if token else f"wants a token: set {TOKEN_PATH} to the file that holds it"
        raise InputError(f"the Ray cluster at {url} {text}")
    if require_token and _answer(url, None) == 200:
        raise InputError(
            f"the Ray cluster at {url} lets everybody in, and whoever reaches it can run code there: start it with "
            "RAY_AUTH_MODE=token, or accept that with ray.require_token=false"
        )


def _answer(url: str, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{url}/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_S) as response:
            return response.status
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return error.code
        raise InputError(
            f"{url} is no Ray dashboard that takes jobs: it answers {error.code} {error.reason}"
        ) from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"no Ray dashboard answers at {url} within {CONNECT_S:g} s ({reason}): is the head running there with "
            "--include-dashboard=true, and may this machine reach it?"
        ) from error


def _follow(client: Any, job: str, console: Console) -> int:
    """Print what the job prints until it has ended; its exit code.

    A stream that breaks is begun anew, without what was printed before: only the job's status says that it is over.
    """
    import aiohttp  # comes with ray[default]

    printed, silent_since = 0, 0.0

    async def stream() -> None:
        nonlocal printed, silent_since
        seen = 0
        async for text in client.tail_job_logs(job):
            new = text[max(0, printed - seen) :]
            seen += len(text)
            printed = max(printed, seen)
            silent_since = 0.0
            sys.stdout.write(new)
            sys.stdout.flush()

    while True:
        trouble: Exception | None = None
        try:
            asyncio.run(stream())
            info = client.get_job_info(job)
            silent_since = 0.0
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            trouble, info = error, None
        if info is not None and info.status.is_terminal():
            return _ended(info, job, console)
        silent_since = silent_since or time.monotonic()
        if trouble is not None and time.monotonic() - silent_since > LOST_S:
            raise RunError(f"no word from the cluster for {LOST_S:g} s; job {job} may still be running: {trouble}")
        time.sleep(1.0)


def _ended(info: Any, job: str, console: Console) -> int:
    _say(console, f"job {job}: {info.status.value}")
    if info.status.value == "SUCCEEDED":
        return 0
    if info.status.value == "STOPPED":
        return PREEMPTED
    if info.driver_exit_code is None:
        raise RunError(f"job {job} did not start: {info.message}")
    return int(info.driver_exit_code)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
