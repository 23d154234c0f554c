"""`maxpo submit ray`: a run as a job of a running Ray cluster, through its dashboard."""

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
from typing import TYPE_CHECKING, Any

from rich.console import Console

from launch.cluster.ray_environment import NEEDS_NO_TOKEN, TOKEN_PATH, use_token
from launch.limited import within
from launch.run.signals import INTERRUPTED, PREEMPTED
from launch.submit.job import RESUME, check_env
from launch.submit.packing import packed
from launch.terminal.printing import say
from maxpo.config import Config
from maxpo.configure.loading import LoadedConfig
from maxpo.configure.writing import to_yaml
from maxpo.errors import InputError, RunError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

LOOPBACK = ("localhost", "127.0.0.1", "::1")
CONNECT_S = 5.0
SILENCE_S, ANSWER_S, LOST_S = 60.0, 30.0, 120.0
"""Seconds without output after which the status of a job is asked; deadline of that call; seconds without an answer of
the dashboard after which a job is no longer followed."""


def submit(
    loaded: LoadedConfig, words: list[str], console: Console, *, address: str | None, detach: bool, dry_run: bool
) -> int:
    """Submit the run to the cluster and follow it. Return the exit code of the job, or 0 if it is not followed.

    Args:
        loaded: the settings. Files with absolute paths are those of the cluster.
        words: the command line after `submit ray`, for the command that resumes the run.
        console: gets all messages.
        address: URL of the dashboard; None means RAY_API_SERVER_ADDRESS, or RAY_ADDRESS if that is a URL.
        detach: return when the job is accepted.
        dry_run: only print what would be sent.

    Raises:
        InputError: a setting is wrong, or the cluster cannot be used.
        RunError: contact with the cluster was lost, or the job never started.
    """
    config = loaded.config
    url = dashboard(address)
    _check_paths(config)
    check_env(loaded)
    with packed(loaded) as (folder, sent):
        if dry_run:
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
            say(console, to_yaml(loaded))
            say(console, f"to {url}: {entrypoint(config)}")
            say(console, f"environment: {job_environment(config)}")
            say(console, f"goes along ({size:.1f} MiB): {', '.join(sent)}")
            say(console, "dry run: nothing was sent")
            return 0
        _authenticate(url, config, console)
        client, job = _send(url, config, folder)
    _say_commands(config, words, url, job, console)
    if detach:
        return 0
    try:
        return _follow(client, job, console)
    except (KeyboardInterrupt, BrokenPipeError):
        say(Console(stderr=True), "the job goes on; see above for how to follow and stop it")
        return INTERRUPTED


def _authenticate(url: str, config: Config, console: Console) -> None:
    """Let Ray use the token of the cluster, and check that the dashboard takes it."""
    token = use_token(required=config.ray.require_token)
    if token and url.startswith("http:") and urllib.parse.urlsplit(url).hostname not in LOOPBACK:
        say(console, f"warning: the token goes to {url} unencrypted; safer is an ssh tunnel to its loopback")
    check_dashboard(url, token, require_token=config.ray.require_token)


def _send(url: str, config: Config, folder: Path) -> tuple[JobSubmissionClient, str]:
    """Submit the job with everything in the folder. Return the client and the id of the job."""
    from ray.job_submission import JobSubmissionClient  # reads the environment that use_token has set

    for name in ("dashboard_sdk", "job.sdk"):  # both log every upload and every stream
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    name = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', config.run.name)}-{secrets.token_hex(4)}"
    try:
        client = JobSubmissionClient(url)
        job = client.submit_job(
            entrypoint=entrypoint(config),
            submission_id=name,
            runtime_env={"working_dir": str(folder), "env_vars": job_environment(config)},
            metadata={"maxpo_run": config.run.name},
        )
    except (RuntimeError, OSError) as error:
        raise InputError(f"the cluster at {url} refused the job: {error}") from error
    return client, job


def _say_commands(config: Config, words: list[str], url: str, job: str, console: Console) -> None:
    again = shlex.join(word for word in words if not word.startswith("checkpoint.resume=") and word != "--detach")
    say(console, f"job             {job}")
    say(console, f"run folder      {Path(config.run.dir) / config.run.name}")
    say(console, f"follow          ray job logs --address {url} --follow {job}")
    say(console, f"stop and save   ray job stop --address {url} --no-wait {job}")
    say(console, f"resume          maxpo submit ray {again} {RESUME}")


def dashboard(address: str | None) -> str:
    """Return the URL of the dashboard.

    Raises:
        InputError: no URL is given, or the value is not a URL.
    """
    named = "--address" if address else "RAY_API_SERVER_ADDRESS"
    url = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not url and "://" in os.environ.get("RAY_ADDRESS", ""):
        named, url = "RAY_ADDRESS", os.environ["RAY_ADDRESS"]
    if not url:
        raise InputError("no cluster is named: give the URL of its dashboard, --address http://127.0.0.1:8265")
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"{named} = {url}: must be the URL of the cluster's dashboard, such as http://127.0.0.1:8265 (for a "
            "remote head, through `ssh -L 8265:127.0.0.1:8265 HEAD`)"
        )
    return url.rstrip("/")


def _check_paths(config: Config) -> None:
    resume = config.checkpoint.resume
    if resume not in ("auto", "must", "never") and not Path(resume).is_absolute():
        raise InputError(f"checkpoint.resume = {resume}: a checkpoint on the cluster needs its absolute path")
    if not Path(config.run.dir).is_absolute():
        raise InputError(
            f"run.dir = {config.run.dir} is relative, and the folder of a job on the cluster is deleted: give a "
            "folder that all nodes see, such as run.dir=/shared/runs"
        )


def entrypoint(config: Config) -> str:
    """Return the shell command of the job. It names bash, since Ray itself uses any sh."""
    lines = ["set -e", *config.launch.setup, "exec python -m launch.cli train config.yaml"]
    return f"exec bash -c {shlex.quote(chr(10).join(lines))}"


def job_environment(config: Config) -> dict[str, str]:
    """Return the environment variables of the job: those of the settings, and the time to save after a stop."""
    wait = {"RAY_JOB_STOP_WAIT_TIME_S": str(int(config.checkpoint.stop_within_s) + 60)}
    return {name: str(value) for name, value in config.launch.env.items()} | wait


def check_dashboard(url: str, token: str | None, *, require_token: bool) -> None:
    """Ask the dashboard for its list of jobs, with the token and without it.

    Raises:
        InputError: the dashboard does not answer, the token is wrong, or `require_token` is on and none is needed.
    """
    if _answer(url, token) in (401, 403):
        text = "does not accept this token" if token else f"wants a token: set {TOKEN_PATH} to the file that holds it"
        raise InputError(f"the Ray cluster at {url} {text}")
    if require_token and _answer(url, None) == 200:
        raise InputError(f"the Ray cluster at {url} {NEEDS_NO_TOKEN}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Handler that follows no redirect, since the token is for one address only."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Return None, which means no redirect."""


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
            f"{url} is not a Ray dashboard that accepts jobs: it answers {error.code} {error.reason}"
        ) from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"no Ray dashboard answers at {url} within {CONNECT_S:g} s ({reason}): is the head running there with "
            "--include-dashboard=true, and may this machine reach it?"
        ) from error


def _follow(client: JobSubmissionClient, job: str, console: Console) -> int:
    """Print the output of the job until it has ended. Return its exit code.

    A stream that breaks or falls silent is opened again, and output printed before is skipped. Only the status of the
    job decides that it is over.
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
            pass  # the status below decides
        try:
            info = within(ANSWER_S, lambda: client.get_job_info(job))
        except (RuntimeError, OSError) as error:
            if time.monotonic() - heard > LOST_S:
                raise RunError(
                    f"no answer from the cluster for {LOST_S:g} s; job {job} may still be running: {error}"
                ) from error
        else:
            heard = time.monotonic()
            if info.status.is_terminal():
                return _ended(info, job, console)
        time.sleep(1.0)


def _ended(info: JobDetails, job: str, console: Console) -> int:
    say(console, f"job {job}: {info.status.value}")
    if info.status.value == "SUCCEEDED":
        return 0
    if info.status.value == "STOPPED":
        return PREEMPTED
    code = info.driver_exit_code
    if code is None:
        raise RunError(f"job {job} failed: {info.message}")
    return 128 - code if code < 0 else code  # as in shells
