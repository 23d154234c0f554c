"""Environments and episodes of several turns, with a scripted policy."""

from __future__ import annotations

import asyncio
import pickle
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from maxpo.environments import Step, calculator
from maxpo.environments.calculator import Calculator, calculate
from maxpo.environments.registry import find_environment
from maxpo.types import Completion
from rollout.episodes.environment_pool import StepError, checked
from rollout.episodes.episode import run_episode
from rollout.episodes.observations import ObservationEncoder
from tests.fakes import completion, prompt
from tests.hostile.texts import BOMBS, CANARY, TEXTS

ROOT = Path(__file__).resolve().parents[3]
MODEL = ROOT / "configs/models/countdown-0.5m"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("37 * 12", "444"),
        (" -(3 + 4) * 2.5 ", "-17.5"),
        ("1/3", "0.3333333333"),
        ("0.1 + 0.2", "0.3"),
        ("6 / 3", "2"),
        ("1e3", "1000"),
        *((bad, None) for bad in ["1/0", "2**9", "a", "", "7//2", "True + 1", "1e400", "(" * 100, "f(1)", "1,2", "1j"]),
        *((bad, None) for bad in ["9" * 201, "__import__('os').system('true')", "\0", "1\n2"]),
    ],
)
def test_the_calculator_knows_arithmetic_only(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize("text", [*TEXTS.values(), *BOMBS.values(), "1e300*" * 28 + "1", "-" * 199 + "1"])
def test_the_calculator_survives_hostile_requests(text):
    assert Calculator().step(text) == NO_CALL
    answered = Calculator().step(f"<calc>{text}</calc>")
    assert (answered.done, answered.parts["calls"]) == (False, 1.0)
    assert len(answered.observation) < 4400
    assert not Path(CANARY).exists()


NO_CALL = Step(done=True, parts={"calls": 0.0, "errors": 0.0})


def test_a_calculator_answers_the_last_request_and_ends_without_one():
    env = Calculator(reply="={value};")
    assert env.step("so <calc>1 + 1</calc> and <calc>2 * 3</calc>") == Step(
        observation="=6;", parts={"calls": 1.0, "errors": 0.0}
    )
    assert env.step("<calc>nonsense</calc>") == Step(observation="=error;", parts={"calls": 1.0, "errors": 1.0})
    assert env.step("the answer is 6") == env.step("<calc>1 + 1") == NO_CALL


class Mine:
    """An environment of one's own."""

    def __init__(self, *, limit: int) -> None:
        self.limit = limit

    def reset(self, prompt: str, reference: Any, seed: int) -> None: ...

    def step(self, completion: str) -> Step:
        return Step(done=True, reward=float(self.limit))


def test_environments_are_found_by_name_and_by_class():
    assert isinstance(find_environment("calculator", {"reply": "{value}"})(), calculator.Calculator)
    assert find_environment(f"{__name__}:Mine", {"limit": 3})().step("").reward == 3.0


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("calc", {}, r"no environment is called 'calc': use one of \['calculator'\]"),
        ("nowhere.at:All", {}, "cannot be imported"),
        (f"{__name__}:test_environments_are_found_by_name_and_by_class", {}, "is not a class with the methods"),
        (f"{__name__}:Mine", {"limits": 3}, "has no argument limits: it has limit. Did you mean limit?"),
        ("calculator", {"opening": 3}, "opening must be text"),
        ("calculator", {"reply": "value"}, r"reply must have \{value\}"),
        ("calculator", {"opening": ""}, "must be two texts"),
        ("calculator", {"opening": "|", "closing": "|"}, "must be two texts"),
        (f"{__name__}:Mine", {}, "missing a required argument: 'limit'"),
    ],
)
def test_a_wrong_environment_is_told(name, args, message):
    with pytest.raises(ValueError, match=message):
        find_environment(name, args)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("stop", "must return a maxpo.environments.Step, not 'stop'"),
        (Step(observation=None), "the observation must be text, not None"),
        (Step(reward=float("nan")), "not 'reward': nan"),
        (Step(reward=None), "not 'reward': None"),
        (Step(parts={"tool calls": 1.0}), "not 'tool calls': 1.0"),
        (Step(parts={"reward": 1.0, "x": float("inf")}), "not 'x': inf"),
    ],
)
def test_a_step_is_checked_before_it_counts(wrong, message):
    with pytest.raises(TypeError, match=message):
        checked(wrong)
    assert checked(Step(reward=1, parts={"calls": True})) == Step(reward=1.0, parts={"calls": 1.0})
    assert checked(Step(success=0)).success is False  # type: ignore[arg-type]


class Script:
    """A policy that says these turns, and remembers how it was asked; a token is a character."""

    def __init__(self, *turns: str, finish: Sequence[str] = ()) -> None:
        self.turns, self.finish = turns, finish
        self.asked: list[tuple[str, list[int], int, int]] = []

    async def __call__(self, request_id: str, token_ids: list[int], seed: int, max_tokens: int) -> Completion:
        number = len(self.asked)
        self.asked.append((request_id, token_ids, seed, max_tokens))
        text = self.turns[number][:max_tokens]
        cut = len(self.turns[number]) > max_tokens
        return completion(
            text,
            token_ids=[*map(ord, text)],
            logprobs=[-0.5 - number] * len(text),
            finish_reason=self.finish[number] if self.finish else "length" if cut else "stop",
            version=3 + number,
        )


class Here:
    """Environments in this process."""

    def __init__(self, env: Any) -> None:
        self.env, self.seeds = env, []

    async def reset(self, prompt: Any, seed: int) -> bytes:
        self.seeds.append(seed)
        self.env.reset(prompt.text, prompt.reference, seed)
        return pickle.dumps(self.env)

    async def step(self, state: bytes, completion: str) -> tuple[bytes, Step]:
        env = pickle.loads(state)
        step = env.step(completion)
        return pickle.dumps(env), step


def run(script: Script, environments: Any, *, max_turns: int = 4, max_tokens: int = 100) -> Completion:
    return asyncio.run(
        run_episode(
            "step1.0/0/p/2",
            prompt(token_ids=(1, 2)),
            script,
            environments,
            lambda observation, turn: list(map(ord, observation)),
            seed=12,
            group_seed=10,
            max_turns=max_turns,
            max_tokens=max_tokens,
        )
    )


TOOL = {"opening": "<", "closing": ">", "reply": "{value}:"}


def test_observations_are_among_the_tokens_but_not_in_the_loss():
    script = Script("<7*6>", "42")
    environments = Here(Calculator(**TOOL))
    done = run(script, environments)
    assert "".join(map(chr, done.token_ids)) == "<7*6>42:42"
    assert done.loss_mask is not None
    assert done.loss_mask.tolist() == [True] * 5 + [False] * 3 + [True] * 2
    assert done.logprobs.tolist() == [-0.5] * 5 + [0.0] * 3 + [-1.5] * 2
    assert done.versions == ((3, 0), (4, 8))
    assert done.finish_reason == "stop"
    assert done.episode is not None
    assert (done.episode.turns, done.episode.answer, done.episode.outcome) == (2, "42", "ok")
    assert done.episode.parts == {"calls": 1.0, "errors": 0.0}
    # The second turn reads everything before it, has what is left of the tokens, and a seed of its own.
    (first, _, seed, limit), (second, read, other, left) = script.asked
    assert (first, seed, limit) == ("step1.0/0/p/2/0", 12, 100)
    assert (second, read, left) == ("step1.0/0/p/2/1", [1, 2, *map(ord, "<7*6>42:")], 92)
    assert other != seed
    assert environments.seeds == [10]


class Countdown:
    """Ends after `n` steps; each is worth 1."""

    def __init__(self, n: int) -> None:
        self.left = n

    def reset(self, prompt: str, reference: Any, seed: int) -> None: ...

    def step(self, completion: str) -> Step:
        self.left -= 1
        return Step(observation="..", reward=1.0, done=self.left == 0)


class Verdicts(Countdown):
    """Countdown that says a verdict in each step."""

    def __init__(self, *verdicts: bool | None) -> None:
        super().__init__(len(verdicts))
        self.verdicts = verdicts

    def step(self, completion: str) -> Step:
        return replace(super().step(completion), reward=0.1, success=self.verdicts[-self.left - 1])


@pytest.mark.parametrize(
    ("verdicts", "limits", "success", "reward"),
    [
        ((None, None, True), {}, True, 0.3),
        ((True, True, False), {}, False, 0.3),
        ((True, False, None), {}, None, 0.3),
        ((False, False, True), {"max_turns": 2}, False, 0.2),
    ],
)
def test_the_last_step_says_whether_the_episode_is_a_success(verdicts, limits, success, reward):
    done = run(Script("aa", "bb", "cc"), Here(Verdicts(*verdicts)), **limits)
    assert done.episode is not None
    assert (done.episode.success, done.episode.reward) == (success, reward)  # 0.1 + 0.1 + 0.1 is 0.3


@pytest.mark.parametrize(
    ("steps", "limits", "text", "turns", "finish"),
    [
        (3, {}, "aa..bb..cc", 3, "stop"),  # state is kept between steps
        (3, {"max_turns": 2}, "aa..bb", 2, "length"),
        (3, {"max_tokens": 9}, "aa..bb..c", 3, "length"),  # done, but cut in the last turn
        (4, {"max_tokens": 9}, "aa..bb..c", 3, "length"),
        (3, {"max_tokens": 8}, "aa..bb", 2, "length"),  # the observation would leave no token for a turn
        (3, {"max_tokens": 6}, "aa..bb", 2, "length"),
    ],
)
def test_where_an_episode_ends(steps, limits, text, turns, finish):
    done = run(Script("aa", "bb", "cc"), Here(Countdown(steps)), **limits)
    assert "".join(map(chr, done.token_ids)) == text
    assert done.finish_reason == finish
    assert done.episode is not None
    assert (done.episode.turns, done.episode.reward) == (turns, float(turns))


def test_an_abort_of_a_turn_aborts_the_episode():
    done = run(Script("aa", "bb", finish=["stop", "abort"]), Here(Countdown(5)))
    assert done.finish_reason == "abort"


class Failing(Here):
    """Fails in the step with this number."""

    def __init__(self, at: int) -> None:
        super().__init__(Countdown(9))
        self.at = at

    async def step(self, state: bytes, completion: str) -> tuple[bytes, Step]:
        self.at -= 1
        if self.at == 0:
            raise StepError("timeout")
        return await super().step(state, completion)


def test_a_failure_of_the_environment_is_the_outcome_of_the_episode():
    done = run(Script("aa", "bb"), Failing(2))
    assert done.episode is not None
    assert (done.episode.outcome, done.episode.turns) == ("timeout", 2)
    assert len(done.token_ids) == len(done.loss_mask) == 6


def test_the_game_of_the_documentation_can_be_played(monkeypatch, tmp_path):
    text = (ROOT / "docs/environments.md").read_text()
    code = text[
        text.index("    from maxpo.environments import Step") : text.index("    environment: {name: my_games:Guess")
    ]
    (tmp_path / "my_games.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    game = find_environment("my_games:Guess", {"largest": 50})()
    game.reset("", None, 130)
    assert [game.step(turn).observation for turn in ("10;", "10", "40;", "x;")] == ["low;", "low;", "high;", "low;"]
    assert game.step("30;") == Step(reward=1.0, done=True, success=True)


CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def test_observations_as_text_and_as_messages():
    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    eos = tokenizer.eos_token_id
    assert tokenizer.decode(ObservationEncoder(tokenizer, None, {}, {eos})("42:", [5])) == "42:"
    with pytest.raises(ValueError, match=r"has no chat template: set environment\.observation_role to null"):
        ObservationEncoder(tokenizer, "tool", {}, {eos})
    tokenizer.chat_template = CHATML
    observe = ObservationEncoder(tokenizer, "tool", {}, {eos})
    assert tokenizer.decode(observe("42", [5])) == "<eos>\n<s>tool:42<eos>\n<s>assistant:"
    # A turn that has ended itself is not ended again.
    assert tokenizer.decode(observe("42", [5, eos])) == "\n<s>tool:42<eos>\n<s>assistant:"
    # It is written with the arguments of the template that the prompt had.
    tokenizer.chat_template = CHATML.replace("assistant:", "assistant:{{ mood }}")
    assert tokenizer.decode(ObservationEncoder(tokenizer, "tool", {"mood": "glad"}, {eos})("42", [5, eos])).endswith(
        "assistant:glad"
    )
    tokenizer.chat_template = CHATML
    # Nothing that an observation says can end it.
    assert observe("<eos>", [5, eos]).count(eos) == 1
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] != 'tool' %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    with pytest.raises(ValueError, match="does not show a message of the role 'tool'"):
        ObservationEncoder(tokenizer, "tool", {}, {eos})
