"""Runs as jobs of a Ray cluster: what goes along, what is refused, and how a job is followed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

import launch.submit.ray_job
from launch.cli import main
from launch.doctor.doctor import _paths as doctor_paths
from launch.submit.packing import LIMIT_MIB, packed
from launch.submit.ray_job import check_dashboard, dashboard, entrypoint
from maxpo.configure.loading import LoadedConfig, load_config
from maxpo.errors import InputError, RunError

DEMO = Path("configs/presets/demo.yaml").resolve()
MODEL = Path("configs/models/countdown-0.5m").resolve()
URL = "http://127.0.0.1:8265"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return folder


def loaded(*overrides: str) -> LoadedConfig:
    return load_config([DEMO], [f"model.path={MODEL}", *overrides], files_here=False)


class TestPacked:
    def test_code_settings_and_files_of_relative_paths(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MAXPO_SECRET", "hunter2")
        (here / "judge.py").write_text("def check(prompt, completion, reference): return 1.0\n")
        (here / "data").mkdir()
        (here / "data" / "train.jsonl").write_text("{}\n")
        (here / "private.txt").write_text("not for others")
        settings = loaded(
            *(
                "reward.verifier=combined",
                "reward.parts={math: 1, 'judge:check': 1}",
                "data.task=null",
                "data.train_file=data/train.jsonl",
            ),
            *("data.eval_file=/shared/eval.jsonl", "checkpoint.remote_options={key: '${oc.env:MAXPO_SECRET}'}"),
        )
        with packed(settings) as (folder, sent):
            files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
            text = (folder / "config.yaml").read_text()
            (metadata,) = folder.glob("maxpo-*.dist-info")
            assert "maxpo_weight_receivers" in (metadata / "entry_points.txt").read_text()
        assert {"launch/cli.py", "launch/submit/slurm_job.sh", "rollout/plugin.py"} <= files
        assert {"judge.py", "data/train.jsonl"} <= files
        assert not any("private" in file or "__pycache__" in file or "model" in file.split("/")[0] for file in files)
        assert sent[2:] == ["data/train.jsonl", "judge.py"]
        assert "hunter2" not in text and yaml.safe_load(text)["ray"]["address"] == "auto"
        assert not folder.exists()

    def test_sources_of_relative_paths_go_along(self, here: Path) -> None:
        (here / "saved").mkdir()
        for name in ("saved/state.json", "train.jsonl", "eval.parquet"):
            (here / name).write_text("{}\n")
        train = "data.train=[{source: train.jsonl}, {source: saved}, {source: /shared/x.jsonl}, {source: some/id}]"
        settings = loaded("data.task=null", train, "data.eval=[{source: eval.parquet}, {task: countdown}]")
        with packed(settings) as (folder, sent):
            assert sent[2:] == ["train.jsonl", "saved", "eval.parquet"]
            assert all((folder / name).is_file() for name in ("saved/state.json", "train.jsonl", "eval.parquet"))
        paths = doctor_paths(settings.config)
        assert paths["data.train saved"] == str(here / "saved")
        assert paths["data.train /shared/x.jsonl"] == "/shared/x.jsonl"
        assert "data.train some/id" not in paths

    @pytest.mark.parametrize("path", ["../secret", "nowhere", "link", "model"])
    def test_what_is_not_there_or_leads_out_is_refused(self, path: str, here: Path) -> None:
        (here.parent / "secret").mkdir()
        (here.parent / "secret" / "key").touch()
        (here / "link").symlink_to(here.parent / "secret")
        (here / "model").mkdir()
        (here / "model" / "key").symlink_to(here.parent / "secret" / "key")
        settings = load_config([DEMO], [f"model.path={path}"], files_here=False)
        refusal = pytest.raises(
            InputError, match=rf"model.path = {path}: relative paths travel with the job.*absolute path"
        )
        with refusal, packed(settings):
            pass

    def test_too_much_is_refused(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with (here / "train.jsonl").open("wb") as file:
            file.truncate((LIMIT_MIB + 1) << 20)
        words = ["data.task=null", "data.train_file=train.jsonl", "data.eval_file=/e", f"run.dir={here}"]
        code = main(["submit", "ray", "--address", URL, str(DEMO), f"model.path={MODEL}", *words])
        assert code == 2
        assert (
            f"data.train_file = train.jsonl has {LIMIT_MIB + 1} MiB; {LIMIT_MIB} MiB may travel with a job"
            in capsys.readouterr().err
        )


class TestDryRun:
    def test_says_what_would_be_sent(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = [str(DEMO), f"model.path={MODEL}", "run.dir=/shared", "launch.setup=['. env.sh']", "launch.env={A: 1}"]
        assert main(["submit", "ray", "--address", f"{URL}/", *words, "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert f"to {URL}: exec bash -c 'set -e\n. env.sh\nexec python -m launch.cli train config.yaml'" in said
        assert "environment: {'A': '1', 'RAY_JOB_STOP_WAIT_TIME_S': '360'}" in said

    def test_setup_runs_in_bash_and_its_failure_is_the_jobs(self, here: Path) -> None:
        (here / "env.sh").write_text("export GREETING=hello\n")
        (here / "python").write_text('#!/bin/sh\necho "$GREETING $*"\n')
        (here / "python").chmod(0o755)
        env = {"PATH": f"{here}:{os.environ['PATH']}"}
        for setup, code, said in (
            (["source env.sh  # the greeting", "[[ -n $GREETING ]]"], 0, "hello -m launch.cli train config.yaml\n"),
            (["false", "source env.sh"], 1, ""),
        ):
            command = entrypoint(loaded(f"launch.setup={json.dumps(setup)}").config)
            done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (code, said), done.stderr

    def test_secrets_and_paths_that_only_this_machine_knows_are_refused(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("MAXPO_SECRET", "hunter2")
        words = ["submit", "ray", "--address", URL, str(DEMO), f"model.path={MODEL}", "run.dir=/shared", "--dry-run"]
        for override, message in (
            (
                "launch.env={KEY: '${oc.env:MAXPO_SECRET}'}",
                "launch.env.KEY = ${oc.env:MAXPO_SECRET}: the value would be",
            ),
            ("checkpoint.resume=runs/x/checkpoints/step_000001", "a checkpoint on the cluster needs its absolute path"),
        ):
            assert main([*words, override]) == 2
            said = capsys.readouterr()
            assert message in said.err and "hunter2" not in said.out + said.err

    def test_a_run_folder_that_would_be_thrown_away_is_refused(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["submit", "ray", "--address", URL, str(DEMO), f"model.path={MODEL}", "--dry-run"]) == 2
        assert "run.dir = runs is relative" in capsys.readouterr().err


class TestDashboard:
    def test_where_it_is(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(InputError, match="no cluster is named"):
            dashboard(None)
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # that of the cluster itself
        with pytest.raises(InputError, match="no cluster is named"):
            dashboard(None)
        monkeypatch.setenv("RAY_ADDRESS", "https://head:8265")
        assert dashboard(None) == "https://head:8265"
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:8265/")
        assert dashboard(None) == "http://other:8265"
        assert dashboard(URL) == URL
        for wrong in ("head:6379", "ray://head:10001", "http://"):
            with pytest.raises(InputError, match=rf"--address = {wrong}: must be the URL"):
                dashboard(wrong)

    @pytest.mark.parametrize(
        ("codes", "token", "message"),
        [
            ({"Bearer good": 200, None: 401}, "good", None),
            ({"Bearer good": 200, None: 401}, "bad", "does not accept this token"),
            ({None: 401}, None, "wants a token: set RAY_AUTH_TOKEN_PATH"),
            ({"Bearer good": 200, None: 200}, "good", "needs no token"),
            ({"Bearer good": 302}, "good", "is not a Ray dashboard that accepts jobs: it answers 302"),
            ({"Bearer good": 404}, "good", "is not a Ray dashboard that accepts jobs: it answers 404"),
        ],
    )
    def test_who_is_let_in(self, codes: dict[str | None, int], token: str | None, message: str | None) -> None:
        with answering(codes) as url:
            if message is None:
                check_dashboard(url, token, require_token=True)
            else:
                with pytest.raises(InputError, match=message):
                    check_dashboard(url, token, require_token=True)

    def test_everybody_may_be_let_in_where_that_is_accepted(self) -> None:
        with answering({None: 200}) as url:
            check_dashboard(url, None, require_token=False)


@contextmanager
def answering(codes: dict[str | None, int]) -> Iterator[str]:
    """A server that answers each Authorization header with a code, others with 403."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(codes.get(self.headers.get("Authorization"), 403))
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Job:
    """A client whose streams break as they are told to; each is what the log held then, in pieces."""

    def __init__(
        self, streams: list[list[str | float] | Exception], states: list[str | Exception], code: int | None = 0
    ) -> None:
        self.streams, self.states, self.code = iter(streams), iter(states), code

    async def tail_job_logs(self, job: str) -> AsyncIterator[str | int]:
        pieces = next(self.streams)
        if isinstance(pieces, Exception):
            raise pieces
        for piece in pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                yield piece

    def get_job_info(self, job: str) -> Any:
        state = next(self.states)
        if isinstance(state, Exception):
            raise state
        status = SimpleNamespace(value=state, is_terminal=lambda: state not in ("PENDING", "RUNNING"))
        return SimpleNamespace(status=status, driver_exit_code=self.code, message="no such interpreter")


class TestFollow:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launch.submit.ray_job.time, "sleep", lambda seconds: None)

    @staticmethod
    def follow(job: Job) -> int:
        return launch.submit.ray_job._follow(job, "job-1", Console(file=StringIO()))

    def test_a_broken_stream_is_read_again_without_what_was_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        streams = [["one\n", "tw"], RuntimeError("closed"), ["one\ntwo\n", "three\n"], ["one\ntwo\nthree\n", "four\n"]]
        job = Job(streams, ["RUNNING", "RUNNING", "RUNNING", "SUCCEEDED"])
        assert self.follow(job) == 0
        assert capsys.readouterr().out == "one\ntwo\nthree\nfour\n"

    def test_a_stream_that_is_silent_or_broken_does_not_hide_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launch.submit.ray_job, "SILENCE_S", 0.1)
        assert self.follow(Job([["x", 5.0]], ["SUCCEEDED"])) == 0
        assert self.follow(Job([RuntimeError("closed")], ["FAILED"], 3)) == 3

    @pytest.mark.parametrize(
        ("state", "code", "want"), [("FAILED", 3, 3), ("FAILED", -9, 137), ("STOPPED", None, 75), ("SUCCEEDED", 0, 0)]
    )
    def test_the_exit_code(self, state: str, code: int | None, want: int) -> None:
        assert self.follow(Job([[]], [state], code)) == want

    def test_a_job_that_never_started(self) -> None:
        with pytest.raises(RunError, match="job job-1 failed: no such interpreter"):
            self.follow(Job([[]], ["FAILED"], None))

    def test_contact_that_is_lost_for_long_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter(range(0, 10_000, 50))
        monkeypatch.setattr(launch.submit.ray_job.time, "monotonic", lambda: float(next(clock)))
        gone = [OSError("no route to host") for _ in range(9)]
        job = Job([["x"], *gone], ["RUNNING", *gone])
        with pytest.raises(
            RunError, match=r"no answer from the cluster .*job-1 may still be running: no route to host"
        ):
            self.follow(job)


def test_the_commands_that_are_printed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray.job_submission

    asked: dict[str, Any] = {}

    class Client:
        def __init__(self, url: str) -> None:
            asked["url"] = url

        def submit_job(self, **job: Any) -> str:
            asked.update(job)
            asked["files"] = sorted(p.name for p in Path(job["runtime_env"]["working_dir"]).iterdir())
            return job["submission_id"]

    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", Client)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "good")
    with answering({"Bearer good": 200}) as url:
        words = [str(DEMO), f"model.path={MODEL}", "run.dir=/shared", "run.name=a b", "checkpoint.resume=auto"]
        assert main(["submit", "ray", "--address", url, *words, "--detach"]) == 0
    said = capsys.readouterr().out
    job = asked["submission_id"]
    assert job.startswith("a-b-") and asked["metadata"] == {"maxpo_run": "a b"}
    assert "good" not in json.dumps(asked) and {"config.yaml", "launch", "maxpo"} <= set(asked["files"])
    assert f"ray job stop --address {url} --no-wait {job}\n" in said
    assert f"maxpo submit ray --address {url} {DEMO} model.path={MODEL} run.dir=/shared 'run.name=a b' " in said
    assert said.endswith(" checkpoint.resume=auto\n") and said.count("resume=auto") == 1 and "--detach" not in said
