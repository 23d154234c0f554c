"""All checks before a run, with all problems in one list: settings, run folder, model, data, verifier and machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch

from launch.run.destination import destination_problems, resumed_from
from launch.run.machine import machine_problems
from launch.run.preflight import Subject, inspect_model, model_problems, prompts_of, test_learner, touched
from launch.run.resuming import check_learner_state
from launch.run.trial import function_problems, own_verifiers, trial_problems
from learner.deepspeed_engine import file_problems
from maxpo.configure.loading import LoadedConfig
from maxpo.configure.problems import Problem
from maxpo.configure.writing import to_yaml
from maxpo.data.order import Mixture, PromptStream
from maxpo.errors import InputError, ProblemsError
from maxpo.loop.state import RunResult, restore
from maxpo.types import Prompt
from rollout.vllm_engine.arguments import argument_problems

T = TypeVar("T")
_PLACE = ("run.dir", "run.name", "run.overwrite", "checkpoint.resume", "checkpoint.remote", "checkpoint.remote_options")
_DEEPSPEED = tuple(f"learner.{name}" for name in ("deepspeed", "ranks", "zero_stage", "dtype", "grad_clip"))
_MACHINE = (
    *("cluster", "ray", "sync.backend", "reward.workers", "environment.workers"),
    *(f"learner.{name}" for name in ("ranks", "cpu_threads", "device", "dtype", "zero_stage", "lora")),
    *(f"rollout.{name}" for name in ("workers", "tensor_parallel_size", "device", "dtype")),
    *("rollout.cpu_kv_cache_gib", "rollout.gpu_memory_utilization"),
)
_DATA = ("data", "run.seed", "reward", "eval.prompts", "eval.every", "eval.at_start", "eval.at_end")
_FUNCTIONS = tuple(f"algorithm.{name}" for name in ("advantage", "mix_with", "shadow", "loss", "group_size", "k"))
_SELF_TEST = (
    *("model", "learner.lora", "learner.token_budget", "learner.sequence_parallel"),
    *("data.max_prompt_tokens", "rollout.max_new_tokens"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a run begins with, after all checks."""

    train: Mixture
    held_out: list[Prompt]
    tested: str
    """Lines about the self-test of the learner. Empty for an evaluation."""


class _Findings:
    """Problems so far, and the checks that were left out."""

    def __init__(self, settings: Sequence[Problem]) -> None:
        self.wrong = {setting.key for problem in settings for setting in problem.settings}
        self.problems = [str(problem) for problem in settings]
        self.left_out: list[str] = []

    def make(self, name: str, reads: Iterable[str], function: Callable[[], T], *, needs: object = True) -> T | None:
        """Return the result of a function, or None if it raises InputError or cannot be called.

        Args:
            name: Name of the check.
            reads: Settings and sections that the function reads.
            function: Raises InputError about what is wrong.
            needs: Result that the function needs. None or False: it is missing.
        """
        if needs is None or needs is False or touched(reads, self.wrong):
            self.left_out.append(name)
            return None
        try:
            return function()
        except ProblemsError as error:
            self.problems += error.problems
        except InputError as error:
            self.problems.append(str(error))
        return None

    def check(
        self, name: str, reads: Iterable[str], function: Callable[[], Iterable[str]], *, needs: object = True
    ) -> bool:
        """Add the problems that a function returns. Return True if it was called and there are none."""

        def all_of_them() -> bool:
            if problems := list(function()):
                raise ProblemsError(problems)
            return True

        return bool(self.make(name, reads, all_of_them, needs=needs))


def get_ready(
    loaded: LoadedConfig,
    settings: Sequence[Problem] = (),
    *,
    say: Callable[[str], None] = lambda line: None,
    evaluation: bool = False,
    run_folder: bool = True,
    dry_run: bool = False,
) -> Ready:
    """Make all checks that start nothing.

    Args:
        loaded: The settings. Keys of `settings` hold any value.
        settings: Problems of the settings.
        say: Called with a line about each source of data.
        evaluation: Nothing is trained.
        run_folder: False if nothing is written to the folder of the run.
        dry_run: True to check too what a run itself checks with its folder locked: the checkpoint to continue from.

    Raises:
        InputError: With all problems.
    """
    config, found = loaded.config, _Findings(settings)
    if run_folder and not evaluation:
        found.check("the run folder", _PLACE, lambda: destination_problems(config))
    if not evaluation:
        found.check("the DeepSpeed file", _DEEPSPEED, lambda: file_problems(config.learner))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found.check("the arguments of vLLM", ("rollout.engine_args",), lambda: argument_problems(config.rollout, device))
    if not evaluation:
        found.check("your estimators and loss", _FUNCTIONS, lambda: function_problems(config.algorithm))
    subject = found.make("the model", ("model",), lambda: inspect_model(config, evaluation=evaluation))
    sound = subject is not None and found.check("the model", (), lambda: model_problems(subject, found.wrong))
    _check_machine(found, loaded, subject, with_learner=not evaluation)
    tokenizer = None if subject is None else subject.tokenizer
    prompts = found.make("the data", _DATA, lambda: prompts_of(config, tokenizer, evaluation=evaluation, say=say))
    first = prompts[0][0] if prompts else None
    if not touched(("reward",), found.wrong) and own_verifiers(config.reward):
        found.check("the verifier", (), lambda: trial_problems(config, cast(Prompt, first)), needs=first and sound)
    tested: str | None = ""
    if not evaluation:
        tested = found.make("the self-test of the learner", _SELF_TEST, lambda: test_learner(config), needs=sound)
    if dry_run and config.checkpoint.resume != "never":
        train = prompts and subject and prompts[0]
        found.make("the checkpoint", (), lambda: _check_resume(loaded, train), needs=train and not found.problems)
    if found.problems or prompts is None or tested is None:
        raise ProblemsError(found.problems, found.left_out)
    return Ready(train=prompts[0], held_out=prompts[1], tested=tested)


def _check_machine(found: _Findings, loaded: LoadedConfig, subject: Subject | None, *, with_learner: bool) -> None:
    config = loaded.config
    parameters = None if subject is None else sum(p.numel() for p in subject.lm.parameters())
    found.check("the machine", _MACHINE, lambda: machine_problems(config, parameters, with_learner=with_learner))


def _check_resume(loaded: LoadedConfig, train: Mixture | None) -> None:
    """Raise InputError unless the run can continue from the checkpoint that `checkpoint.resume` asks for."""
    config = loaded.config
    source = resumed_from(config, to_yaml(loaded))
    if source is not None and train is not None:
        restore(source, RunResult(), PromptStream(train, config.run.seed))
        check_learner_state(config, source)
