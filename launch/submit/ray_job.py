"""The command `maxpo submit ray`: a run as a job of a running Ray cluster, through its dashboard."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import shlex
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.cluster.ray_environment import LETS_EVERYBODY_IN, TOKEN_PATH, use_token
from launch.limited import within
from launch.run.signals import INTERRUPTED, PREEMPTED
from launch.submit.job import RESUME, check_env
from launch.submit.packing import packed
from launch.terminal.printing import say
from maxpo.config import Config
from maxpo.configure.loading import LoadedConfig
from maxpo.configure.writing import to_yaml
from maxpo.errors import InputError, RunError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
CONNECT_S = 5.0
SILENCE_S, ANSWER_S, LOST_S = 60.0, 30.0, 120.0
"""Seconds without a word of a job after which its status is asked; of that call; and without an answer of the dashboard
after which a job is no longer followed."""


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
    _check_paths(config)
    check_env(loaded)
    with packed(loaded) as (folder, sent):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
        command = entrypoint(config)
        env = job_environment(config)
        if dry_run:
            say(console, to_yaml(loaded))
            say(console, f"to {url}: {command}")
            say(console, f"environment: {env}")
            say(console, f"goes along ({size:.1f} MiB): {', '.join(sent)}")
            say(console, "dry run: nothing was sent")
            return 0
        token = use_token(required=config.ray.require_token)
        if token and url.startswith("http:") and urllib.parse.urlsplit(url).hostname not in LOOPBACK:
            say(console, f"warning: the token goes to {url} unencrypted; safer is an ssh tunnel to its loopback")
        check_dashboard(url, token, require_token=config.ray.require_token)
        from ray.job_submission import JobSubmissionClient  # reads the environment that use_token has set

        for name in ("dashboard_sdk", "job.sdk"):  # they tell of every upload and every stream
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        name = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', config.run.name)}-{secrets.token_hex(4)}"
        try:
            client: Any = JobSubmissionClient(url)
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
    say(console, f"job             {job}")
    say(console, f"run folder      {Path(config.run.dir) / config.run.name}")
    say(console, f"follow          ray job logs {where} --follow {job}")
    say(console, f"stop and save   ray job stop {where} --no-wait {job}")
    say(console, f"resume          maxpo submit ray {again} {RESUME}")
    if detach:
        return 0
    try:
        return _follow(client, job, console)
    except (KeyboardInterrupt, BrokenPipeError):
        Console(stderr=True).print("the job goes on; see above for how to follow and stop it", highlight=False)
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


def _check_paths(config: Config) -> None:
    resume = config.checkpoint.resume
    if resume not in ("auto", "must", "never") and not Path(resume).is_absolute():
        raise InputError(f"checkpoint.resume = {resume}: a checkpoint on the cluster needs its absolute path")
    if not Path(config.run.dir).is_absolute():
        raise InputError(
            f"run.dir = {config.run.dir} is relative, and a job's own folder on the cluster is thrown away: give a "
            "folder that all nodes see, such as run.dir=/shared/runs"
        )


def entrypoint(config: Config) -> str:
    """The shell command of the job; bash, since Ray itself takes whatever sh is."""
    lines = ["set -e", *config.launch.setup, "exec python -m launch.cli train config.yaml"]
    return f"exec bash -c {shlex.quote(chr(10).join(lines))}"


def job_environment(config: Config) -> dict[str, str]:
    """Environment variables of the job: those of the settings, and the time to save when it is stopped."""
    wait = {"RAY_JOB_STOP_WAIT_TIME_S": str(int(config.checkpoint.stop_within_s) + 60)}
    return {name: str(value) for name, value in config.launch.env.items()} | wait


def check_dashboard(url: str, token: str | None, *, require_token: bool) -> None:
    """Ask the dashboard for its list of jobs, with the token and without.

    Raises:
        InputError: nobody answers, the token is wrong, or everybody is let in and `require_token` is on.
    """
    if _answer(url, token) in (401, 403):
        text = "does not accept this token" if token else f"wants a token: set {TOKEN_PATH} to the file that holds it"
        raise InputError(f"the Ray cluster at {url} {text}")
    if require_token and _answer(url, None) == 200:
        raise InputError(f"the Ray cluster at {url} {LETS_EVERYBODY_IN}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token is for this address and no other."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Never."""


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


def _answer(url: str, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{url}/api/jobs/", headers=headers)
    try:
        with _DIRECT.open(request, timeout=CONNECT_S) as response:
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

    A stream that breaks or falls silent is begun anew, without what was printed before: only the job's status says
    that it is over.
    """
    import aiohttp  # comes with ray[default]

    printed, heard = 0, time.monotonic()

    async def stream() -> None:
        nonlocal printed, heard
        seen = 0
        pieces = aiter(client.tail_job_logs(job))
        while True:
            try:
                text = await asyncio.wait_for(anext(pieces), SILENCE_S)
            except (StopAsyncIteration, TimeoutError):
                return
            new = text[max(0, printed - seen) :]
            seen += len(text)
            printed, heard = max(printed, seen), time.monotonic()
            sys.stdout.write(new)
            sys.stdout.flush()

    while True:
        try:
            asyncio.run(stream())
        except BrokenPipeError:
            raise
        except (RuntimeError, OSError, aiohttp.ClientError):
            pass  # what it means, the status says
        try:
            info = within(ANSWER_S, lambda: client.get_job_info(job))
        except (RuntimeError, OSError) as error:
            if time.monotonic() - heard > LOST_S:
                raise RunError(
                    f"no word from the cluster for {LOST_S:g} s; job {job} may still be running: {error}"
                ) from error
        else:
            heard = time.monotonic()
            if info.status.is_terminal():
                return _ended(info, job, console)
        time.sleep(1.0)


def _ended(info: Any, job: str, console: Console) -> int:
    say(console, f"job {job}: {info.status.value}")
    if info.status.value == "SUCCEEDED":
        return 0
    if info.status.value == "STOPPED":
        return PREEMPTED
    code = info.driver_exit_code
    if code is None:
        raise RunError(f"job {job} failed: {info.message}")
    return 128 - code if code < 0 else code  # as shells have it
