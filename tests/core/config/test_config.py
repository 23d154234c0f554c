"""Loading, checking and explaining the settings of a run."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maxpo.config import Config
from maxpo.config.ranges import between
from maxpo.configure import fields, loading
from maxpo.configure.checking import check
from maxpo.configure.fields import get, leaf_of, schema
from maxpo.configure.loading import LoadedConfig, load_config
from maxpo.configure.problems import ConfigError, Problem, Setting
from maxpo.configure.rules.general import COMBINATIONS, ranges_of
from maxpo.configure.writing import explain, to_yaml

GOOD = {
    "run": {"name": "first", "steps": 3},
    "data": {"task": "countdown"},
    "reward": {"verifier": "countdown"},
    "rollout": {"max_new_tokens": 64},
    "learner": {"lr": 1e-6},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Works in an empty folder with a model, and `good.yaml` that sets exactly what must be set."""
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    Path("good.yaml").write_text(yaml.safe_dump({**GOOD, "model": {"path": "model"}}))
    return tmp_path


def load(*overrides: str, file: str = "good.yaml") -> LoadedConfig:
    return load_config([Path(file)], overrides)


def problems_of(*overrides: str, file: str = "good.yaml") -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, file=file)
    return caught.value.problems


def only_problem(*overrides: str, file: str = "good.yaml") -> Problem:
    problems = problems_of(*overrides, file=file)
    assert len(problems) == 1, "\n".join(map(str, problems))
    return problems[0]


@pytest.mark.usefixtures("here")
class TestMerging:
    def test_defaults_stay_and_the_file_counts(self) -> None:
        config = load().config
        assert isinstance(config, Config)
        assert (config.run.name, config.run.steps, config.algorithm.k, config.learner.lr) == ("first", 3, 4, 1e-6)
        assert config.learner.betas == [0.9, 0.95]
        assert type(config.learner.betas) is list

    def test_later_files_win_then_overrides_then_the_last_override(self) -> None:
        Path("more.yaml").write_text("algorithm: {k: 2, minibatches: 4}\n")
        loaded = load_config([Path("good.yaml"), Path("more.yaml")], ["algorithm.k=3", "algorithm.k=5"])
        assert (loaded.config.algorithm.k, loaded.config.algorithm.minibatches) == (5, 4)
        assert loaded.origin["algorithm.k"].where == "command line"
        assert loaded.origin["algorithm.minibatches"].where == "more.yaml:1"
        assert "algorithm.loss" not in loaded.origin

    def test_base_comes_first_wherever_it_is_written_and_is_relative_to_its_file(self, here: Path) -> None:
        (here / "sub").mkdir()
        (here / "sub/rloo.yaml").write_text("algorithm: {k: 1}\nrun: {steps: 9}\nbase: ../good.yaml\n")
        config = load(file="sub/rloo.yaml").config
        assert (config.algorithm.k, config.run.steps, config.run.name) == (1, 9, "first")

    def test_base_cycle(self) -> None:
        Path("a.yaml").write_text("base: b.yaml\n")
        Path("b.yaml").write_text("# comment\nbase: a.yaml\n")
        problem = only_problem(file="a.yaml")
        assert "leads back" in problem.message
        assert problem.settings[0].where == "b.yaml:2"

    def test_base_that_is_not_a_path(self) -> None:
        Path("a.yaml").write_text("base: [good.yaml]\n")
        assert [p.message for p in problems_of(file="a.yaml") if p.key == "base"] == [
            "Must be the path of one YAML file."
        ]

    def test_a_file_given_twice_through_base_is_blamed_once(self) -> None:
        Path("bad.yaml").write_text("base: good.yaml\nrun: {stepz: 3}\n")
        Path("top.yaml").write_text("base: bad.yaml\n")
        with pytest.raises(ConfigError) as caught:
            load_config([Path("bad.yaml"), Path("top.yaml")], [])
        assert [p.key for p in caught.value.problems] == ["run.stepz"]

    def test_mappings_merge_and_lists_are_replaced(self) -> None:
        Path("m.yaml").write_text("base: good.yaml\ndata: {task_args: {digits: 3, deep: {a: 1}}}\n")
        config = load("data.task_args.deep.b=1e-3", "eval.k=[2]", file="m.yaml").config
        assert config.data.task_args == {"digits": 3, "deep": {"a": 1, "b": 1e-3}}
        assert config.eval.k == [2]

    def test_a_whole_section_on_the_command_line(self) -> None:
        assert load("algorithm={k: 2, loss: policy_gradient}").config.algorithm.loss == "policy_gradient"


@pytest.mark.usefixtures("here")
class TestValues:
    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("learner.lr=1e-6", 1e-6),
            ("learner.grad_clip=3", 3.0),
            ("run.name=007", "007"),
            ("run.name=no", "no"),
            ("run.name='null'", "null"),
            ("run.name=2024-01-01", "2024-01-01"),
            ("run.steps=1_000", 1000),
            ("run.overwrite=true", True),
            ("algorithm.tis_cap=null", None),
            ("learner.betas=[0, 0.5]", [0.0, 0.5]),
            ("rollout.engine_args={a: yes, b: 1e-3, c: 1:30}", {"a": "yes", "b": 1e-3, "c": "1:30"}),
            ("run.seed=${algorithm.k}", 4),
            ("run.dir=${run.name}/x=y", "first/x=y"),
        ],
    )
    def test_accepted(self, override: str, expected: object) -> None:
        value = get(load(override).config, override.partition("=")[0])
        assert value == expected
        assert type(value) is type(expected)

    @pytest.mark.parametrize(
        ("override", "key", "message"),
        [
            ("run.steps=abc", "run.steps", "Must be a whole number."),
            ("run.steps=1e3", "run.steps", "Must be a whole number. Write 1000."),
            ("run.steps=1.5", "run.steps", "Must be a whole number."),
            ("run.steps=null", "run.steps", "Must be a whole number."),
            ("run.steps=true", "run.steps", "Must be a whole number."),
            ("run.steps=[1]", "run.steps", "Must be a whole number."),
            ("run.name=[a]", "run.name", "Must be text."),
            ("run.overwrite=2", "run.overwrite", "Must be true or false."),
            ("run.overwrite=1.0", "run.overwrite", "Must be true or false."),
            ("learner.lr=fast", "learner.lr", "Must be a number."),
            ("learner.betas=0.9", "learner.betas", "Must be a list of numbers, such as [1, 2]."),
            ("learner.betas=[0.9, x]", "learner.betas", "Must be a list of numbers, such as [1, 2]."),
            ("learner.betas.0=0.9", "learner.betas.0", "learner.betas has no keys below it"),
            ("run.seed.x=1", "run.seed.x", "run.seed has no keys below it: it is a whole number."),
            ("eval.k=3.0", "eval.k", "Must be a list of whole numbers, such as [1, 2]."),
            ("data.train=3", "data.train", "Must be a list of mappings, such as [{name: value}]."),
            ("data.train=[a.jsonl]", "data.train", "Must be a list of mappings, such as [{name: value}]."),
            ("data.task_args=3", "data.task_args", "Must be a mapping, such as {name: value}."),
            (
                "algorithm.loss=ppo",
                "algorithm.loss",
                "Must be one of ppo_clip, dual_clip, gspo, cispo, sapo, policy_gradient, or a function of your own as "
                "package.module:function or file.py:function.",
            ),
            ("ray.num_cpus=many", "ray.num_cpus", "Must be a whole number or null."),
            ("algorithm=3", "algorithm", "is a section"),
            ("algorithm=null", "algorithm", "is a section"),
            ("seed", "seed", "key=value"),
            ("a[0]=x", "a[0]=x", "such as run.name=first"),
            ("=3", "=3", "such as run.name=first"),
            ("run..name=3", "run..name=3", "such as run.name=first"),
            ("run.dir=", "run.dir=", "nothing after"),
            ("eval.k=[1", "eval.k=[1", "Not valid YAML"),
            ("data.task_args={a: 1, a: 2}", "data.task_args.a", "Written twice"),
            ("run.seed='${oc.env:'", "run.seed", "${oc.env:NAME}"),
            ("run.seed=${run.zz}", "run.seed", "'run.zz' not found"),
            ("run.seed=${run.seed}", "run.seed", "Recursive"),
            ("run.seed=${run.name}", "run.seed", "stands for is not a whole number"),
            ("learner.betas=['${run.zz}', 0.9]", "learner.betas", "'run.zz' not found"),
            ("run.steps=???", "run.steps", "Must be set to a whole number"),
        ],
    )
    def test_refused(self, override: str, key: str, message: str) -> None:
        problem = only_problem(override)
        assert problem.key == key
        assert message in problem.message
        assert problem.settings[-1].where == "command line"

    @pytest.mark.parametrize(
        ("override", "nearest"),
        [
            ("algorithm.group_sizes=8", ["algorithm.group_size"]),
            ("algoritm.group_size=8", ["algorithm.group_size"]),
            ("group_size=8", ["algorithm.group_size"]),
            ("algorithms={k: 3}", ["algorithm"]),
            ("device=cpu", ["rollout.device", "learner.device"]),
            ("seed", ["run.seed"]),
        ],
    )
    def test_nearest_key(self, override: str, nearest: list[str]) -> None:
        assert list(only_problem(override).nearest) == nearest

    def test_an_unknown_key_that_is_like_none_lists_the_keys_of_its_section(self) -> None:
        problem = only_problem("sync.zzzzzz=1")
        assert not problem.nearest
        assert "sync.backend, sync.bucket_mib, sync.timeout_s" in problem.message

    def test_missing_values_are_all_named_with_what_they_need(self) -> None:
        with pytest.raises(ConfigError) as caught:
            load_config([], ["data.task=countdown"])
        mandatory = [key for key, field in schema().items() if field.default == "???"]
        assert [p.key for p in caught.value.problems] == mandatory
        assert "run.name" in mandatory
        assert all(p.settings[0].where == "not set" for p in caught.value.problems)
        assert "one of code, code_unsafe_no_sandbox, countdown, " in str(caught.value)

    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("STEPS", raising=False)
        assert "Environment variable 'STEPS' not found" in only_problem("run.steps=${oc.env:STEPS}").message
        monkeypatch.setenv("STEPS", "12")
        assert load("run.steps=${oc.env:STEPS}").config.run.steps == 12

    @pytest.mark.parametrize(
        "override",
        [
            "run.steps=${oc.env:TOKEN}",
            "data.task=${oc.env:TOKEN}",
            "run.seed=${${oc.env:TOKEN}}",
            "learner.betas=['${oc.env:TOKEN}', 0.9]",
            "reward.verifier=${oc.env:TOKEN}",
            "reward.args={numeric: {tolerance: '${oc.env:TOKEN}'}}",
            "reward.by_source={a: '${oc.env:TOKEN}'}",
        ],
    )
    def test_an_error_does_not_show_the_environment(self, override: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOKEN", "hunter2")
        assert "hunter2" not in str(only_problem(override))


@pytest.mark.usefixtures("here")
class TestFiles:
    @pytest.mark.parametrize(
        ("text", "where", "message"),
        [
            ("", "f.yaml", "empty"),
            ("# only a comment\n", "f.yaml", "empty"),
            ("- a\n- b\n", "f.yaml", "must hold sections"),
            ("just words\n", "f.yaml", "must hold sections"),
            ("run:\n  name: [a\n", "f.yaml:3", "Not valid YAML"),
            ("run:\n\tname: a\n", "f.yaml:2", "Not valid YAML"),
            ("run: &r {name: a}\nmodel: *r\n", "f.yaml:2", "base:"),
            ("base: nope.yaml\n", "f.yaml:1", "Can not read nope.yaml: No such file or directory."),
        ],
    )
    def test_unreadable_file_is_the_only_problem(self, text: str, where: str, message: str) -> None:
        Path("f.yaml").write_text(text)
        problem = only_problem(file="f.yaml")
        assert message in problem.message
        assert str(problem).splitlines()[0] == f"  {where}"

    def test_file_that_does_not_exist_or_is_not_text(self) -> None:
        assert only_problem(file="nope.yaml").message == "Can not read nope.yaml: No such file or directory."
        assert only_problem(file="model").message == "Can not read model: Is a directory."
        Path("f.yaml").write_bytes(b"run: \xff\n")
        assert only_problem(file="f.yaml").settings[0].where == "f.yaml"

    def test_lines(self) -> None:
        Path("f.yaml").write_text(
            "base: good.yaml\n"  # 1
            "run:\n"
            "  nam: x\n"  # 3
            "  steps: many\n"  # 4
            "algorithm:\n"
            "  k:\n"  # 6: the line of the key, not of its value
            "    true\n"
            "eval.k: [1]\n"  # 8
            "data:\n"
            "  task_args: {a: {b: 1, b: 2}}\n"  # 10
            "learner: {lr: 1}\n"
            "learner: {lr: !!int x}\n"  # 12
            "1: 2\n"
        )
        problems = problems_of(file="f.yaml")
        assert {(p.key, p.settings[-1].where, p.settings[-1].text) for p in problems} == {
            ("run.nam", "f.yaml:3", "x"),
            ("run.steps", "f.yaml:4", "many"),
            ("algorithm.k", "f.yaml:6", "true"),
            ("eval.k", "f.yaml:8", "[1]"),
            ("data.task_args.a.b", "f.yaml:10", ""),
            ("learner", "f.yaml:12", ""),
            ("learner.lr", "f.yaml:12", "!!int x"),
            ("1", "f.yaml:13", "2"),
        }

    def test_a_default_is_not_blamed_for_a_value_of_the_wrong_type(self) -> None:
        # The default k is 4: the combination must wait until k is known.
        assert [p.key for p in problems_of("algorithm.k=x", "algorithm.group_size=3")] == ["algorithm.k"]

    def test_everything_at_once_as_it_is_printed(self) -> None:
        Path("f.yaml").write_text("base: good.yaml\nalgorithm:\n  group_sizes: 4\n  k: 16\nrun: {steps: 1e3}\n")
        with pytest.raises(ConfigError) as caught:
            load("learner.dtype=fp8", "seed", file="f.yaml")
        assert str(caught.value) == (
            "5 problems in the settings, nothing was started:\n\n"
            "  algorithm.group_sizes = 4   (f.yaml:3)\n"
            "      There is no such key. Did you mean algorithm.group_size?\n\n"
            "  run.steps = 1e3   (f.yaml:5)\n"
            "      Must be a whole number. Write 1000.\n\n"
            "  learner.dtype = fp8   (command line)\n"
            "      Must be one of float32, bfloat16, float16.\n\n"
            "  seed   (command line)\n"
            "      A setting on the command line is written key=value, without spaces. Did you mean run.seed?\n\n"
            "  algorithm.k = 16   (f.yaml:4)\n"
            "  algorithm.group_size = 16   (default)\n"
            '  algorithm.advantage = "maxpo"   (default)\n'
            '  algorithm.k_schedule = "constant"   (default)\n'
            "      algorithm.k must be below algorithm.group_size: each advantage leaves one completion out."
        )


COMBINED = "reward.verifier=combined"
K_KEYS = "algorithm.k algorithm.group_size algorithm.advantage algorithm.k_schedule"
VALUES_KEYS = "algorithm.k_values algorithm.k_schedule algorithm.group_size algorithm.advantage algorithm.mix_with"
NUMBERS = [key for key, field in schema().items() if field.type in (int, float, int | None, float | None)]
OUT_OF_RANGE = [
    "algorithm.k=0",
    "algorithm.k_values=[0,4]",
    "algorithm.k_steps=[1000000000000000000000000000000]",
    "eval.k=[]",
    'run.name="a\\nb"',
    'run.name="\\e[31mred"',
    f"run.name={'a' * 300}",
    f"run.name={'é' * 101}",
    "run.name=' '",
    "ray.address=head:99999",
    "ray.address=head:0",
    "algorithm.objective=best",
    "algorithm.objective=top_m:0",
    "algorithm.objective=quantile:2",
    "algorithm.lam=w",
    "algorithm.lam=.inf",
    "algorithm.dual_clip=1",
    "algorithm.entropy_step=0",
    "algorithm.length_buffer=0",
    "algorithm.loss=ppo",
    "reward.group=nope",
    "algorithm.sapo_temperatures=[1.0]",
    "algorithm.sapo_temperatures=[0,1]",
    "algorithm.token_mask=[0.5]",
    "algorithm.token_mask=[1.1,2]",
    "algorithm.sequence_mask=[2,0.5]",
    "algorithm.mix_with=reinforce",
    "algorithm.mix_weight=[]",
    "algorithm.mix_weight=[0.5,1.5]",
    "algorithm.shadow=[grpo,reinforce]",
    "checkpoint.remote=bucket/prefix",
    "environment.name=calc",
    "environment.name='..x:Y'",
    "reward.verifier='..x:y'",
    "reward.verifier=':y'",
    "reward.by_source={a: 'x y:z'}",
    "checkpoint.keep_best=eval/pass@9",
    "environment.stop=[a, '']",
    "checkpoint.resume=yes",
    "checkpoint.resume=nowhere/step_000001",
    "run.name=..",
    "run.name=a/b",
    "run.name=''",
    "run.seed=-1",
    "run.seed=4294967296",
    "run.steps=0",
    "learner.lr=0",
    "learner.lr=.nan",
    "learner.lr=nan",
    "learner.lr=.inf",
    "learner.grad_clip=-1",
    "learner.betas=[0.9]",
    "learner.betas=[0.9, 1]",
    "learner.betas=[0.9, .nan]",
    "learner.zero_stage=4",
    "learner.zero_stage=-1",
    "learner.deepspeed=nope.json",
    "learner.deepspeed=list.json",
    "learner.deepspeed=broken.json",
    "learner.lora.rank=-1",
    "learner.lora.alpha=0",
    "learner.lora.targets=['']",
    "learner.lora.targets=[self_attn.q_proj]",
    "learner.lora.targets=[q_proj,q_proj]",
    "rollout.temperature=0",
    "rollout.gpu_memory_utilization=0",
    "rollout.gpu_memory_utilization=1.01",
    "algorithm.clip_low=1",
    "algorithm.clip_low=-0.1",
    "algorithm.clip_high=-0.1",
    "algorithm.kl_estimator=k1",
    "algorithm.group_size=1",
    "algorithm.advantage=ppo",
    "algorithm.tis_cap=0",
    "algorithm.aggregation_constant=0",
    "reward.verifier=judge",
    "reward.code_memory_mib=64",
    "reward.code_float_tolerance=1",
    "data.date=2026-02-30",
    "data.task=chess",
    "data.train_file=nope.jsonl",
    "data.fields={question: prompt}",
    "data.fields={prompt: [a]}",
    "data.template_args={tokenize: true}",
    "data.eval_file=nope.jsonl",
    "eval.k=[0]",
    "ray.object_store_mib=74",
    "ray.address=ray://head:10001",
    "ray.address=head",
    "cluster.sleep_level=3",
    "cluster.interface='eth0; reboot'",
    'launch.setup=["a\\nb"]',
    "launch.setup=['']",
    "launch.env={1a: x}",
    'launch.env={A: "x\\ny"}',
    "launch.env={A: true}",
    "launch.env={A: [1]}",
    "launch.env={RAY_AUTH_TOKEN: x}",
    "launch.log_dir='a b'",
    "launch.log_dir=-a",
    "launch.log_dir=job-%j",
    "launch.slurm_options=[partition=gpu]",
    'launch.slurm_options=["--partition=gpu\\nreboot"]',
    "launch.k8s_image='a b'",
    "launch.k8s_claim=My_Claim",
    "launch.k8s_secret=-a",
    "launch.k8s_mount=data",
    "launch.k8s_mount=/dev/shm",
    "launch.k8s_mount='/a b'",
    "model.path=nope",
    "model.path=empty",
]


def _text(value: float) -> str:
    """Return a number as text. Python itself writes no whole number of thousands of digits."""
    return "1" + "0" * 5000 if value == 10**5000 else str(value)


@pytest.mark.usefixtures("here")
class TestChecks:
    @pytest.fixture(autouse=True)
    def files(self, here: Path) -> None:
        assert Path.cwd() == here
        Path("empty").mkdir()
        Path("rows.jsonl").write_text("{}\n")
        Path("list.json").write_text("[]")
        Path("broken.json").write_text("{,}")
        Path("zero.json").write_text('{"zero_optimization": {}}')

    def test_k1_in_the_loss_is_refused_with_a_reason_and_older_runs_keep_k3(self) -> None:
        problem = only_problem("algorithm.kl_estimator=k1")
        assert "the gradient of k1 is zero on average" in problem.message
        assert "Use k2" in problem.message
        assert load("algorithm.kl_estimator=k3").config.algorithm.kl_estimator == "k3"
        assert load().config.algorithm.kl_estimator == "k2"

    @pytest.mark.parametrize("override", OUT_OF_RANGE)
    def test_out_of_range(self, override: str) -> None:
        problem = only_problem(override)
        assert [s.key for s in problem.settings] == [override.partition("=")[0]]
        assert problem.settings[0].where == "command line"

    @pytest.mark.parametrize(
        ("overrides", "keys", "message"),
        [
            (["reward.verifier=maths"], "reward.verifier", "function. Did you mean math?"),
            (["reward.verifier=combined"], "reward.parts reward.verifier", "needs weights, such as"),
            (["reward.parts={math: 1}"], "reward.parts reward.verifier", "with reward.verifier combined only"),
            (
                [COMBINED, "reward.parts={numerik: 1}"],
                "reward.parts",
                "verifier numerik to be added up. Did you mean nu",
            ),
            ([COMBINED, "reward.parts={combined: 1}"], "reward.parts", "no verifier combined to be added up."),
            ([COMBINED, "reward.parts={math: much}"], "reward.parts", "weight of math must be a finite number."),
            ([COMBINED, "reward.parts={math: true}"], "reward.parts", "weight of math must be a finite number."),
            ([COMBINED, "reward.parts={math: .inf}"], "reward.parts", "weight of math must be a finite number."),
            (["reward.args={numerik: {}}"], "reward.args", "no verifier numerik to be set up. Did you mean numeric?"),
            (["reward.args={numeric: 3}"], "reward.args", "numeric takes a mapping of arguments"),
            (["reward.args.exact.x=3"], "reward.args", "exact has no argument x: it has none."),
            (["reward.args.numeric.tolerence=3"], "reward.args", "it has tolerance. Did you mean tolerance?"),
            (["reward.args.numeric.tolerance=x"], "reward.args", "numeric: tolerance must be a number or null."),
            (["reward.args.numeric.tolerance=.nan"], "reward.args", "numeric: tolerance must be a number or null."),
            (
                ["reward.args.numeric.tolerance=1"],
                "reward.args",
                "numeric: tolerance must be at least 0 and below 1, or null.",
            ),
            (["reward.args.math.boxed=1"], "reward.args", "math: boxed must be true or false."),
            (["reward.args.math.longest=0"], "reward.args", "math: longest must be 1 to 2000."),
            (["reward.args.math.longest=true"], "reward.args", "math: longest must be a whole number."),
            (["reward.args.regex.pattern='('"], "reward.args", "regex: pattern must be one of Python's re."),
            (["reward.args.regex.mode=match"], "reward.args", "regex: mode must be one of fullmatch, search."),
            (["reward.args.format.closing=''"], "reward.args", "format: closing must not be empty"),
            (["reward.args.format.closing=3"], "reward.args", "format: closing must be text."),
            (
                ["reward.args.length={start: 5, cap: 5}"],
                "reward.args",
                "length: start must be at least 0 and below cap.",
            ),
            (
                ["reward.verifier=length", "reward.max_chars=100"],
                "reward.args reward.max_chars",
                "cap of length must be",
            ),
            (["reward.by_source={a: maths}"], "reward.by_source", "The verifier of a must be one of"),
            (["reward.by_source={a: 3}"], "reward.by_source", "The verifier of a must be one of"),
            (["reward.by_source={a: combined}"], "reward.parts reward.verifier", "needs weights"),
            (
                ["reward.verifier=environment"],
                "environment.name reward.verifier",
                "leaves the reward to an environment: set environment.name too",
            ),
            (
                ["environment.name=calculator", "environment.args.open=x"],
                "environment.args environment.name",
                "calculator has no argument open: it has opening, closing, reply. Did you mean opening?",
            ),
            (["environment.stop=[x]"], "environment.stop environment.name", "Does nothing without environment.name"),
            (["environment.args={a: 1}"], "environment.args environment.name", "Does nothing without environment.name"),
        ],
    )
    def test_mistakes_of_verifiers(self, overrides: list[str], keys: str, message: str) -> None:
        problem = only_problem(*overrides)
        assert " ".join(leaf_of(s.key) for s in problem.settings) == keys
        assert message in problem.message

    @pytest.mark.parametrize(
        "overrides",
        [
            [COMBINED, "reward.parts={math: 1, format: 0.2, 'tests.verifiers:moody': -1}"],
            ["reward.by_source={a: combined, b.c: 'x:y'}", "reward.parts={exact: 0}"],
            ["reward.args={'x:y': {z: 1}, numeric: {tolerance: 0}, regex: {pattern: null}}"],
            ["reward.verifier=length", "reward.max_chars=100", "reward.args.length={start: 0, cap: 100}"],
            ["reward.verifier=exact", "reward.max_chars=100"],
            ["reward.verifier=length", "rollout.max_new_tokens=8192", "reward.args.length.cap=100000"],
        ],
    )
    def test_settings_of_verifiers(self, overrides: list[str]) -> None:
        loaded = load(*overrides)
        Path("again.yaml").write_text(to_yaml(loaded))
        assert load(file="again.yaml").config.reward == loaded.config.reward

    def test_every_range_is_tried(self) -> None:
        tried = {override.partition("=")[0] for override in OUT_OF_RANGE}
        assert {key for key in schema() if ranges_of(key)} - set(NUMBERS) <= tried

    def test_the_two_faults_of_a_model_path_are_told_apart(self) -> None:
        assert "no such folder" in only_problem("model.path=nope").message
        assert "no config.json" in only_problem("model.path=empty").message

    @pytest.mark.parametrize("number", NUMBERS)
    def test_every_number_refuses_nonsense(self, number: str) -> None:
        whole = schema()[number].type in (int, int | None)
        for value in (-7, 10**30, 10**12, 10**5000, *(() if whole else (1e300, -1e300))):
            assert number in [p.key for p in problems_of(f"{number}={_text(value)}")], value

    @pytest.mark.parametrize(
        "overrides",
        [
            ["learner.zero_stage=0", "learner.dtype=float32"],
            ["learner.zero_stage=3", "learner.deepspeed=zero.json"],
            ["rollout.gpu_memory_utilization=1", "algorithm.clip_low=0", "algorithm.clip_high=0"],
            ["algorithm.k=15"],
            ["algorithm.advantage=pkpo_loo_minus_one", "algorithm.k=16"],
            ["algorithm.advantage=grpo", "algorithm.k=16"],
            ["algorithm.advantage=rloo", "algorithm.k=1"],
            ["algorithm.group_size=2", "algorithm.k=1"],
            ["algorithm.objective=top_m:4"],
            ["algorithm.objective=lower_tail:0.25", "algorithm.shadow=[grpo,maxrl]"],
            ["algorithm.objective=min", "algorithm.advantage=interpolated", "algorithm.lam=0.25", "algorithm.k=16"],
            ["algorithm.k_schedule=linear", "algorithm.k_values=[8,1]"],
            ["algorithm.k_schedule=adaptive", "algorithm.k_values=[1,15]"],
            ["algorithm.k_schedule=stepwise", "algorithm.k_values=[8,4,1]", "algorithm.k_steps=[2,3]"],
            ["algorithm.mix_with=maxpo", "algorithm.advantage=grpo", "algorithm.mix_weight=[0,1]"],
            ["algorithm.mix_with=maxpo", "algorithm.advantage=grpo", "algorithm.objective=min"],
            ["algorithm.k_schedule=linear", "algorithm.k_values=[3,1]", "algorithm.group_size=4"],
            ["algorithm.k_schedule=linear", "algorithm.k_values=[16,1]", "algorithm.advantage=pkpo"],
            ["algorithm.minibatches=32"],
            ["data.task=null", "data.train_file=rows.jsonl", "data.eval_file=rows.jsonl"],
            ["data.task=null", "data.train_file=rows.jsonl", "eval.at_start=false", "eval.at_end=false"],
            ["data.task=null", "data.train=[{task: countdown}]", "data.eval=[{source: rows.jsonl}]"],
            ["data.eval_file=rows.jsonl"],
            ["eval.samples=16"],
            ["learner.token_budget=576"],
            ["sync.backend=gloo", "rollout.device=cpu", "learner.device=cpu"],
            ["sync.backend=nccl", "rollout.device=cuda", "learner.device=cuda"],
            ["sync.backend=ipc"],
            ["learner.lora={rank: 8, targets: [q_proj, v_proj]}", "learner.lora.alpha=0.5"],
            ["learner.grad_clip=0", "eval.every=0", "learner.warmup_steps=0"],
            ["launch.setup=['module load cuda', 'ulimit -n 65536']", "launch.env={A_1: x y, B: 3, C: 0.5, D: ''}"],
            ["launch.slurm_options=['--account=a', -p gpu]", "launch.log_dir=/a/b-c", "cluster.interface=ib0.1"],
            ["launch.k8s_image=r.example.org:5000/a/b@sha256:0af", "launch.k8s_claim=a.b-1", "launch.k8s_mount=/a/b"],
        ],
        ids=" ".join,
    )
    def test_allowed(self, overrides: list[str]) -> None:
        load(*overrides)

    @pytest.mark.parametrize(
        ("overrides", "keys"),
        [
            (["algorithm.k=16"], K_KEYS),
            (["algorithm.advantage=pkpo_loo_minus_one", "algorithm.k=17"], "algorithm.k algorithm.group_size"),
            *(
                ([f"algorithm.advantage={name}", "algorithm.k=16"], K_KEYS)
                for name in ("canonical", "pkpo_loo", "passk_training")
            ),
            (["algorithm.mix_with=maxpo"], "algorithm.mix_with algorithm.advantage"),
            (["algorithm.length_buffer=100000"], "algorithm.length_buffer rollout.max_new_tokens"),
            (
                ["algorithm.lam=adaptive", "algorithm.advantage=interpolated"],
                "algorithm.lam algorithm.probe_every algorithm.advantage algorithm.mix_with",
            ),
            (
                ["algorithm.probe_every=5", "learner.zero_stage=3"],
                "algorithm.probe_every learner.zero_stage learner.sequence_parallel",
            ),
            *(
                (
                    [setting, "learner.ranks=2", "learner.sequence_parallel=2"],
                    "algorithm.loss algorithm.sequence_mask learner.sequence_parallel",
                )
                for setting in ("algorithm.loss=gspo", "algorithm.sequence_mask=[0.5,2]")
            ),
            (
                ["algorithm.advantage=grpo", "algorithm.mix_with=maxpo", "algorithm.k=16"],
                "algorithm.mix_with algorithm.k algorithm.group_size algorithm.k_schedule",
            ),
            (
                ["algorithm.objective=min", "algorithm.advantage=rloo"],
                "algorithm.objective algorithm.advantage algorithm.mix_with",
            ),
            (
                ["algorithm.objective=top_m:5"],
                "algorithm.objective algorithm.k algorithm.k_values algorithm.k_schedule",
            ),
            *(
                (["algorithm.k_schedule=linear", f"algorithm.k_values={values}", *more], VALUES_KEYS)
                for values, *more in (
                    ["[1,16]"],
                    ["[1,17]", "algorithm.advantage=pkpo"],
                    ["[1,16]", "algorithm.advantage=pkpo", "algorithm.mix_with=maxpo"],
                )
            ),
            (
                ["algorithm.k_schedule=linear", "algorithm.k_values=[1,4]", "algorithm.advantage=grpo"],
                "algorithm.k_schedule algorithm.advantage algorithm.mix_with",
            ),
            (["algorithm.k_schedule=linear"], "algorithm.k_values algorithm.k_schedule"),
            (
                ["algorithm.k_schedule=adaptive", "algorithm.k_values=[8,1]"],
                "algorithm.k_values algorithm.k_schedule",
            ),
            *(
                (
                    ["algorithm.k_schedule=stepwise", "algorithm.k_values=[8,4]", f"algorithm.k_steps={steps}"],
                    "algorithm.k_steps algorithm.k_values algorithm.k_schedule run.steps",
                )
                for steps in ("[]", "[1]", "[2,3]", "[9]")
            ),
            (["algorithm.minibatches=5"], "algorithm.prompts_per_step algorithm.minibatches"),
            (["data.task=null"], "data.task data.train_file data.train"),
            (["data.train_file=rows.jsonl", "data.eval_file=rows.jsonl"], "data.task data.train_file data.train"),
            (["data.train=[{task: countdown}]", "data.eval_file=rows.jsonl"], "data.task data.train_file data.train"),
            (["data.eval_file=rows.jsonl", "data.eval=[{task: countdown}]"], "data.eval_file data.eval"),
            (
                ["data.task=null", "data.train_file=rows.jsonl"],
                "data.eval_file data.eval data.train_file data.train eval.every eval.at_start eval.at_end",
            ),
            (["eval.samples=15"], "eval.k eval.samples"),
            (["learner.token_budget=575"], "learner.token_budget data.max_prompt_tokens rollout.max_new_tokens"),
            (["sync.backend=gloo", "rollout.device=cuda"], "sync.backend rollout.device learner.device"),
            (["sync.backend=nccl", "learner.device=cpu"], "sync.backend rollout.device learner.device"),
            (["sync.backend=ipc", "rollout.device=cpu"], "sync.backend rollout.device learner.device"),
            (
                ["cluster.placement=colocated", "learner.ranks=2"],
                "cluster.placement learner.ranks rollout.workers rollout.tensor_parallel_size",
            ),
            (["cluster.placement=colocated", "sync.backend=nccl"], "cluster.placement sync.backend"),
            (["cluster.placement=disaggregated", "sync.backend=ipc"], "cluster.placement sync.backend"),
            (["cluster.nodes=2", "ray.address=local"], "cluster.nodes ray.address"),
            (["learner.ranks=3", "learner.sequence_parallel=2"], "learner.sequence_parallel learner.ranks"),
            (["checkpoint.stop_within_s=600"], "launch.stop_before_s checkpoint.stop_within_s"),
            (["launch.time_limit_min=10"], "launch.time_limit_min launch.stop_before_s"),
        ],
    )
    def test_senseless_combination(self, overrides: list[str], keys: str) -> None:
        assert [s.key for s in only_problem(*overrides).settings] == keys.split()

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            (
                "{weight: 2}",
                "it must have either `source` (a file, folder or dataset id) or `task` (a procedural task).",
            ),
            ("{source: rows.jsonl, task: countdown}", "it must have either `source`"),
            ("{source: rows.jsonl, wieght: 2}", "there is no `wieght` here; besides `source` there are split, name,"),
            ("{source: rows.jsonl, task_args: {}}", "there is no `task_args` here"),
            ("{source: 3}", "source = 3 must be text."),
            ("{source: rows.jsonl, weight: true}", "weight = True must be a number."),
            ("{source: rows.jsonl, weight: 0}", "weight = 0 must be 0.000001 to 1000000."),
            ("{source: rows.jsonl, weight: .inf}", "weight = inf must be 0.000001 to 1000000."),
            ("{source: rows.jsonl, weight: .nan}", "weight = nan must be 0.000001 to 1000000."),
            ("{source: rows.jsonl, fields: {question: prompt}}", "must map some of prompt, answer, source"),
            ("{source: nope.parquet}", "there is no file nope.parquet."),
            ("{task: chess}", "task = chess must be one of arithmetic, countdown, maze, reasoning_gym."),
            ("{task: countdown, size: 0}", "size = 0 must be 1 to 10000000."),
        ],
    )
    @pytest.mark.parametrize("key", ["data.train", "data.eval"])
    def test_each_entry_of_the_sources_is_checked(self, key: str, entry: str, message: str) -> None:
        other = ["data.eval_file=rows.jsonl"] if key == "data.train" else []
        train = ["data.task=null"] if key == "data.train" else []
        problem = only_problem(*train, *other, f"{key}=[{{task: countdown}}, {entry}]")
        assert problem.key == key
        assert problem.message.startswith("Entry 2: ")
        assert message in problem.message

    def test_evaluation_in_between_or_at_the_start_needs_rows_too(self) -> None:
        rows = ["data.task=null", "data.train_file=rows.jsonl", "eval.at_end=false"]
        only_problem(*rows, "eval.at_start=true")
        only_problem(*rows, "eval.at_start=false", "eval.every=5")

    def test_files_that_are_elsewhere_are_not_looked_for(self) -> None:
        elsewhere = [
            "model.path=nope",
            "data.task=null",
            "data.train_file=a",
            "data.eval_file=b",
            "checkpoint.resume=c",
        ]
        sources = ["data.task=null", "data.train=[{source: a.jsonl}]", "data.eval=[{source: b.parquet}]"]
        assert {p.key for p in problems_of(*sources)} == {"data.train", "data.eval"}
        load_config([Path("good.yaml")], sources, files_here=False)
        named = {"model.path", "data.train_file", "data.eval_file", "checkpoint.resume"}
        assert {p.key for p in problems_of(*elsewhere)} == named
        load_config([Path("good.yaml")], elsewhere, files_here=False)
        with pytest.raises(ConfigError, match=r"run\.steps"):
            load_config([Path("good.yaml")], [*elsewhere, "run.steps=0"], files_here=False)

    def test_a_wrong_value_is_not_blamed_twice(self) -> None:
        assert [len(p.settings) for p in problems_of("algorithm.minibatches=0", "algorithm.group_size=-1")] == [1, 1]

    def test_combinations_read_exactly_the_keys_they_name(self) -> None:
        variants = [
            load(*overrides).config
            for overrides in (
                [],
                ["algorithm.advantage=pkpo_loo_minus_one"],
                ["sync.backend=nccl"],
                ["cluster.placement=colocated"],
                ["cluster.placement=disaggregated"],
                ["cluster.nodes=2"],
                ["algorithm.k_schedule=linear", "algorithm.k_values=[8,1]"],
                ["algorithm.k_schedule=adaptive", "algorithm.k_values=[1,8]"],
                ["algorithm.k_schedule=stepwise", "algorithm.k_values=[8,1]", "algorithm.k_steps=[3]"],
                ["algorithm.mix_with=pkpo"],
                ["algorithm.objective=min"],
                ["algorithm.advantage=grpo", "algorithm.mix_with=pkpo"],
                ["algorithm.advantage=grpo", "algorithm.mix_with=maxpo", "algorithm.objective=min"],
                ["data.task=null", "data.train_file=rows.jsonl", "eval.at_start=false", "eval.at_end=false"],
                ["data.task=null", "data.train=[{task: countdown}]", "data.eval_file=rows.jsonl"],
                ["sync.backend=gloo"],
                ["reward.verifier=code", "reward.timeout_s=100"],
                ["pipeline.max_staleness=2", "pipeline.lookahead=1"],
                ["pipeline.max_staleness=1", "pipeline.update=drained"],
                ["pipeline.max_staleness=1", "pipeline.cache=keep"],
                ["algorithm.advantage=interpolated", "algorithm.lam=adaptive", "algorithm.probe_every=2"],
                ["learner.ranks=2", "learner.sequence_parallel=2"],
                ["algorithm.length_buffer=2"],
            )
        ]
        for involved, holds, _ in COMBINATIONS:
            seen: set[str] = set()
            for config in variants:
                holds(_Spy(config, "", seen))  # type: ignore[arg-type]
            assert seen == set(involved)

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["pipeline.lookahead=1"], "pipeline.lookahead must be at most pipeline.max_staleness"),
            (["pipeline.max_staleness=2", "pipeline.lookahead=3"], "pipeline.lookahead must be at most"),
            (["pipeline.max_staleness=1", "algorithm.tis_cap=null"], "algorithm.tis_cap must be a number"),
            (["pipeline.max_staleness=2", "pipeline.update=drained"], "pipeline.max_staleness must be 1"),
            (["pipeline.cache=keep"], "needs pipeline.max_staleness above 0"),
            (
                ["pipeline.max_staleness=1", "pipeline.update=drained", "pipeline.cache=keep"],
                "and pipeline.update in_flight",
            ),
        ],
    )
    def test_combinations_of_the_pipeline(self, overrides: list[str], message: str) -> None:
        assert message in only_problem(*overrides).message
        load("pipeline.max_staleness=4", "pipeline.lookahead=2", "pipeline.cache=keep")

    def test_check_does_not_edit_and_names_the_origin(self) -> None:
        config = load().config
        config.learner.lr = math.inf
        config.algorithm.group_size = 0
        before = repr(config)
        origin = {"learner.lr": Setting(key="learner.lr", where="x.yaml:3", text=".inf")}
        assert [str(s) for p in check(config, origin) for s in p.settings] == [
            "learner.lr = .inf   (x.yaml:3)",
            "algorithm.group_size = 0   (default)",
        ]
        assert repr(config) == before


class TestKeepBest:
    @pytest.mark.parametrize(
        "override",
        [
            *("eval/pass@9", "eval/avg@16", "eval/greedy", "reward/max@8", "loss", "train/loss_scale", "time/eval_s"),
            *("environment/turns", "shadow/grpo/mean", "eval/mismatch_kl", "eval/gsm8k/pass@3", "", "eval/pass@{k}"),
        ],
    )
    def test_a_metric_that_never_exists_is_refused(self, override: str, here: Path) -> None:
        problem = only_problem(f"checkpoint.keep_best='{override}'")
        assert problem.message.startswith("No checkpoint of this run has this metric.")

    @pytest.mark.parametrize(
        ("name", "others"),
        [
            ("eval/pass@8", []),
            ("eval/max@16/low", []),
            ("eval/gsm8k/avg@32", []),
            ("eval/greedy", ["eval.greedy=true"]),
            ("reward/max@4", []),
            ("reward/anything", []),
            ("shadow/grpo/mean", ["algorithm.shadow=[grpo]"]),
            ("train/loss_scale", ["learner.dtype=float16"]),
            ("eval/pass@8", ["eval.at_end=false", "eval.every=3", "checkpoint.every=1"]),
        ],
    )
    def test_a_metric_that_exists_is_accepted(self, name: str, others: list[str], here: Path) -> None:
        assert load(f"checkpoint.keep_best={name}", *others).config.checkpoint.keep_best == name

    def test_the_nearest_metric_and_missing_evaluations_are_told(self, here: Path) -> None:
        assert "Did you mean eval/pass@16" in only_problem("checkpoint.keep_best=eval/pas@16").message
        best = "checkpoint.keep_best=eval/pass@8"
        assert "set checkpoint.every too" in only_problem(best, "checkpoint.every=0").message
        assert "set eval.at_end" in only_problem(best, "eval.at_end=false").message


class _Spy:
    """Notes which dotted keys of a config are read."""

    def __init__(self, value: Any, prefix: str, seen: set[str]) -> None:
        self._value, self._prefix, self._seen = value, prefix, seen

    def __getattr__(self, name: str) -> Any:
        value, key = getattr(self._value, name), f"{self._prefix}{name}"
        if is_dataclass(value):
            return _Spy(value, f"{key}.", self._seen)
        self._seen.add(key)
        return value


@pytest.mark.usefixtures("here")
class TestToYaml:
    def test_references_are_resolved_and_the_environment_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOKEN", "hunter2")
        loaded = load(
            "run.seed=${algorithm.k}",
            "learner.betas=['${learner.weight_decay}', 0.9]",
            "run.dir=/tmp/${oc.env:TOKEN}",
            "run.name=x-${reward.verifier}",
            "data.system_prompt=see-${run.dir}",
            "rollout.engine_args={hf_token: '${oc.env:TOKEN}'}",
            "data.task_args=${rollout.engine_args}",
        )
        assert loaded.config.data.system_prompt == "see-/tmp/hunter2"
        assert loaded.config.data.task_args == {"hf_token": "hunter2"}
        text = to_yaml(loaded)
        assert "hunter2" not in text
        plain = yaml.safe_load(text)
        assert (plain["run"]["seed"], plain["run"]["name"], plain["learner"]["betas"]) == (4, "x-countdown", [0.0, 0.9])
        assert plain["data"]["system_prompt"] == "see-${run.dir}"
        assert plain["rollout"]["engine_args"] == {"hf_token": "${oc.env:TOKEN}"}
        assert plain["data"]["task_args"] == "${rollout.engine_args}"
        Path("again.yaml").write_text(text)
        assert load(file="again.yaml").config == loaded.config

    def test_an_escaped_reference_stays_text(self) -> None:
        loaded = load(r"run.dir=\${x}", "data.system_prompt=${run.dir}")
        assert (loaded.config.run.dir, loaded.config.data.system_prompt) == ("${x}", "${x}")
        Path("again.yaml").write_text(to_yaml(loaded))
        assert load(file="again.yaml").config == loaded.config

    def test_holds_every_key_and_leaves_the_tree_alone(self) -> None:
        loaded = load("run.seed=${algorithm.k}")
        plain = yaml.safe_load(to_yaml(loaded))
        own = {f"{section}.{name}" for section in plain for name in plain[section]} - {"learner.lora"}
        assert own | {f"learner.lora.{name}" for name in plain["learner"]["lora"]} == set(schema())
        assert "${algorithm.k}" in str(loaded.tree)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        args=st.dictionaries(
            st.text(st.characters(categories=["L"]), min_size=1, max_size=4),
            st.none()
            | st.booleans()
            | st.integers(-(2**63) + 1, 2**63 - 1)
            | st.floats(allow_nan=False)
            | st.text(max_size=8).filter(lambda s: "${" not in s and s != "???" and not {"\\", "\0"} & {*s}),
            max_size=4,
        ),
        lr=st.floats(min_value=1e-12, max_value=1.0),
        folder=st.sampled_from(["on", "1e3", "010", "null", "1:30", "2024-01-01", "a: b", "#x", "é", " ", "0x10", "~"]),
    )
    def test_what_is_written_is_read_back(self, args: dict[str, object], lr: float, folder: str) -> None:
        loaded = load()
        loaded.tree.data.task_args, loaded.tree.learner.lr, loaded.tree.run.dir = args, lr, folder
        Path("again.yaml").write_text(to_yaml(loaded), encoding="utf-8")
        config = load(file="again.yaml").config
        assert (config.data.task_args, config.learner.lr, config.run.dir) == (args, lr, folder)
        assert [type(value) for value in config.data.task_args.values()] == [type(value) for value in args.values()]


@dataclass(kw_only=True)
class Extra:
    """A section with a new setting."""

    size: Annotated[int, between(3, 9, "that many are needed")] = 5
    """Size of everything."""


@dataclass(kw_only=True)
class Extended(Config):
    """All settings and a new section."""

    extra: Extra = field(default_factory=Extra)


@pytest.mark.usefixtures("here")
def test_a_new_setting_is_one_field(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for module in (fields, loading):
            monkeypatch.setattr(module, "Config", Extended)
        for cached in (fields.sections, fields.schema):
            cached.cache_clear()
        assert explain("extra.size") == (
            "extra.size = 5\n    a whole number\n    Must be 3 to 9: that many are needed.\n    Size of everything."
        )
        assert only_problem("extra.size=2").message == "Must be 3 to 9: that many are needed."
        assert only_problem("extra.size=x").message == "Must be a whole number."
        assert load("extra.size=4").config.extra.size == 4  # type: ignore[attr-defined]
    finally:
        monkeypatch.undo()
        for cached in (fields.sections, fields.schema):
            cached.cache_clear()


class TestExplain:
    def test_every_field_has_a_docstring(self) -> None:
        assert [key for key, field in schema().items() if not field.doc] == []

    def test_one_section_everything(self) -> None:
        assert explain("algorithm.group_size") == (
            "algorithm.group_size = 16\n"
            "    a whole number\n"
            "    Must be 2 to 100000: completions of a prompt are compared with each other.\n"
            "    Completions per prompt, N."
        )
        assert re.findall(r"^(\S+) =", explain("sync"), re.M) == ["sync.backend", "sync.bucket_mib", "sync.timeout_s"]
        assert re.findall(r"^(\S+) =", explain(None), re.M) == list(schema())
        assert explain("run.name").startswith("run.name = (must be set)\n    text\n")
        assert "one of maxpo, canonical, pkpo, " in explain("algorithm.advantage")
        assert "\n    text or null\n    Must be one of calculator, or a class" in explain("environment.name")
        assert "\n    a number\n    Must be more than 0 and at most 1.\n" in explain("rollout.gpu_memory_utilization")

    def test_unknown_key(self) -> None:
        with pytest.raises(ConfigError) as caught:
            explain("algorithm.grup_size")
        assert caught.value.problems[0].nearest == ("algorithm.group_size",)


def test_nothing_heavy_is_imported() -> None:
    heavy = {"torch", "ray", "vllm", "deepspeed", "transformers"}
    code = f"import sys, maxpo.configure.loading; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


class TestSettingsOfEarlierVersions:
    OLD = "base: good.yaml\nrollout: {start_timeout_s: 7, health_grace_s: 3, top_p: 1.0}\n"

    def test_a_removed_key_is_an_error_that_names_its_replacement(self, here: Path) -> None:
        (here / "old.yaml").write_text(self.OLD)
        with pytest.raises(ConfigError) as error:
            load_config([Path("old.yaml")], [])
        said = str(error.value)
        assert "rollout.start_timeout_s = 7   (old.yaml:2)" in said
        assert "There is no such key any more. Use run.start_timeout_s." in said
        assert "There is no such key any more. It equals rollout.health_timeout_s." in said

    def test_in_a_run_folder_it_is_translated(self, here: Path) -> None:
        (here / "old.yaml").write_text(self.OLD)
        loaded = load_config([Path("old.yaml")], [], earlier_run=True)
        assert loaded.config.run.start_timeout_s == 7.0
        assert loaded.origin["run.start_timeout_s"].where == "old.yaml:2"
