"""Checks that need the libraries but no cluster: model folder, verifier, environment and data."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from launch.run.weights import weight_problems
from learner.model.loading import self_test
from learner.model.lora import coverage, require_peft, target_layers
from maxpo.config import Config, RewardConfig
from maxpo.config.reward import COMBINED
from maxpo.data.order import Mixture
from maxpo.data.prompts import load_prompts
from maxpo.data.rows import Chat, Encode, Message
from maxpo.data.templates import template_args, text_encoder
from maxpo.environments.registry import find_environment
from maxpo.errors import InputError, ProblemsError
from maxpo.rewards.code.verifier import cannot_run
from maxpo.rewards.registry import find_scorer, names_in_use
from maxpo.rewards.trial import reference_check, try_functions
from maxpo.rewards.verifiers.thinking_format import CLOSING, OPENING
from maxpo.types import Prompt
from maxpo.wording import listed, shown
from rollout.endings import stop_ids
from rollout.episodes.observations import ObservationEncoder


@dataclass(frozen=True, slots=True)
class Subject:
    """Subject of the checks."""

    config: Config
    model: PretrainedConfig
    lm: PreTrainedModel
    """The model on the meta device, without memory."""
    tokenizer: Any  # transformers sets the special tokens of PreTrainedTokenizerBase without declaring them
    evaluation: bool

    @property
    def path(self) -> str:
        """Path of the model folder."""
        return self.config.model.path

    @property
    def stops(self) -> frozenset[int]:
        """Tokens that end a completion."""
        return stop_ids(self.tokenizer, self.path, trust_remote_code=self.config.model.trust_remote_code)


def check_model(config: Config, *, evaluation: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the model, after all checks that need no more than the model folder.

    Args:
        config: a checked configuration.
        evaluation: nothing is trained, so peft is not needed.

    Raises:
        InputError: with all problems, each with its key and what to do.
    """
    subject = inspect_model(config, evaluation=evaluation)
    if problems := model_problems(subject):
        raise ProblemsError(problems)
    return subject.tokenizer


def inspect_model(config: Config, *, evaluation: bool = False) -> Subject:
    """Return the model without its weights, and its tokenizer.

    Raises:
        InputError: one of them cannot be loaded.
    """
    path, trust = config.model.path, config.model.trust_remote_code
    try:
        model = AutoConfig.from_pretrained(path, trust_remote_code=trust, local_files_only=True)
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(model, trust_remote_code=trust)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust, local_files_only=True)
    # The files of a model, and code that comes with it, may fail in any way.
    except Exception as error:
        reason = shown(f"{type(error).__name__}: {error}", 400)
        raise InputError(f"model.path = {path} cannot be loaded: {reason}") from error
    if not set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()):
        raise InputError(
            f"model.path = {path} has no tokenizer: transformers finds no tokens there. Copy the tokenizer's files "
            "(tokenizer.json and tokenizer_config.json, or tokenizer.model) into the folder"
        )
    _check_generation_config(Path(path, "generation_config.json"))
    return Subject(config, model, lm, tokenizer, evaluation)


def _check_generation_config(file: Path) -> None:
    """Raise InputError if the file is there and does not hold an object with tokens. transformers would ignore it."""
    if not file.exists():
        return
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        ends = content.get("eos_token_id")
        sound = all(type(token) is int for token in (ends if isinstance(ends, list) else [ends] if ends else []))
    except (OSError, ValueError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise InputError(
            f"{file} must hold one JSON object, whose eos_token_id is a token or a list of tokens: correct it, or copy "
            "it again"
        )


def model_problems(subject: Subject, wrong: Collection[str] = ()) -> list[str]:
    """Return the problems that need no more than the model folder.

    Args:
        subject: The model.
        wrong: Keys of wrong settings. A check that reads one of them is left out.
    """
    checks = [check for check, keys in CHECKS.items() if not touched(keys, wrong)]
    return [problem for check in checks for problem in check(subject)]


def touched(keys: Iterable[str], wrong: Collection[str]) -> bool:
    """Return True if one of the keys, or a key of one of the sections, is among the wrong ones."""
    return any(name == key or name.startswith(f"{key}.") for name in wrong for key in keys)


def _length(s: Subject) -> Iterator[str]:
    longest = s.config.data.max_prompt_tokens + s.config.rollout.max_new_tokens
    positions = getattr(s.model, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        yield (
            f"data.max_prompt_tokens + rollout.max_new_tokens = {longest}, but the model has {positions} positions: "
            "lower one of the two"
        )


def _sequence_parallel(s: Subject) -> Iterator[str]:
    ranks = s.config.learner.sequence_parallel
    if ranks == 1:
        return
    queries = getattr(s.model, "num_attention_heads", None) or 0
    heads = {"attention": queries, "key and value": getattr(s.model, "num_key_value_heads", None) or queries}
    for name, count in heads.items():
        if count == 0 or count % ranks:
            yield (
                f"learner.sequence_parallel = {ranks} does not divide the {count} {name} heads of {s.path}: each of "
                "the ranks that share a row takes a part of the heads"
            )


def _adapter(s: Subject) -> Iterator[str]:
    lora = s.config.learner.lora
    if not lora.rank or s.evaluation:
        return
    try:
        require_peft()
        target_layers(s.lm, lora)
    except ValueError as error:
        yield str(error)


def _weights(s: Subject) -> Iterator[str]:
    yield from weight_problems(Path(s.path), s.lm, packed=getattr(s.model, "quantization_config", None) is not None)


def _end_of_sequence(s: Subject) -> Iterator[str]:
    if not s.stops:
        yield (
            f"{s.path}: neither the tokenizer nor generation_config.json has an end-of-sequence token, so no "
            "completion could ever end"
        )


def _vocabulary(s: Subject) -> Iterator[str]:
    size = getattr(s.model.get_text_config(), "vocab_size", None)
    outside = sorted((token, text) for text, token in s.tokenizer.get_vocab().items() if size and token >= size)
    if outside:
        shown = ", ".join(f"{text!r} = {token}" for token, text in outside[:5])
        yield (
            f"{s.path}: the tokenizer has {len(outside)} tokens that the model's vocabulary of {size} lacks: {shown}; "
            "take the tokenizer that belongs to the model, or enlarge the model's embedding"
        )


def _scorer(s: Subject) -> Iterator[str]:
    try:
        find_scorer(s.config.reward)
    except ValueError as error:
        yield f"reward.verifier: {error}"


def _environment(s: Subject) -> Iterator[str]:
    environment = s.config.environment
    if environment.name is None:
        return
    try:
        find_environment(environment.name, environment.args)
    except ValueError as error:
        yield f"environment.name: {error}"
    try:
        ObservationEncoder(s.tokenizer, environment.observation_role, template_args(s.config.data), s.stops)
    except ValueError as error:
        yield f"environment.observation_role: {error}"
    # A template may raise anything.
    except Exception as error:
        yield f"environment.observation_role: the chat template fails: {type(error).__name__}: {error}"
    for text in environment.stop:
        if s.tokenizer.convert_tokens_to_ids(text) in s.stops:
            yield f"environment.stop: {text} ends a turn by itself, and the environment never sees it: leave it out"


def _verifiers(s: Subject) -> Iterator[str]:
    for name in names_in_use(s.config.reward):
        if (reason := cannot_run(name)) is not None:
            yield f"verifier {name}: {reason}"


CHECKS: dict[Callable[[Subject], Iterator[str]], tuple[str, ...]] = {
    _length: ("data.max_prompt_tokens", "rollout.max_new_tokens"),
    _sequence_parallel: ("learner.sequence_parallel",),
    _adapter: ("learner.lora",),
    _weights: (),
    _end_of_sequence: (),
    _vocabulary: (),
    _scorer: ("reward",),
    _environment: ("environment", "data.template_args", "data.date"),
    _verifiers: ("reward",),
}
"""Checks of the model, each with the settings that it reads. Each yields the problems that it finds."""


def test_learner(config: Config) -> str:
    """Test on the host, in float32, that the learner computes the model's own log-probabilities.

    Returns:
        Lines for the start of the run: the outcome, and the share of the model that an adapter covers.

    Raises:
        InputError: the model cannot be loaded, or the learner would compute others.
    """
    report = self_test(config, torch.float32, torch.device("cpu"))
    tested = "self-test of the learner: off (model.self_test)" if report is None else report.sentence()
    lora = config.learner.lora
    if not lora.rank:
        return tested
    trust = config.model.trust_remote_code
    shape = AutoConfig.from_pretrained(config.model.path, trust_remote_code=trust, local_files_only=True)
    with torch.device("meta"):
        return f"{tested}\n{coverage(AutoModelForCausalLM.from_config(shape, trust_remote_code=trust), lora)}"


def load_data(
    config: Config, *, evaluation: bool = False, say: Callable[[str], None] = lambda line: None
) -> tuple[Mixture, list[Prompt]]:
    """Return the training and the held-out prompts, in tokens of the model, after `check_model`.

    Args:
        config: a checked configuration.
        evaluation: load held-out prompts even if no evaluation is due in the training.
        say: called with a line for each source: how many rows were read, and how many left out.

    Raises:
        InputError: see `check_model`; or `reward.by_source` names an unknown source.
    """
    return prompts_of(config, check_model(config, evaluation=evaluation), evaluation=evaluation, say=say)


def prompts_of(
    config: Config,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    evaluation: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Mixture, list[Prompt]]:
    """Return the training and the held-out prompts, see `load_data`.

    Args:
        config: a checked configuration.
        tokenizer: that of the model. None: there is none, so each prompt gets a single token, and rows are checked.
        evaluation: see `load_data`.
        say: see `load_data`.
    """
    wants_eval = evaluation or config.eval.at_start or config.eval.at_end or config.eval.every
    train, held_out = load_prompts(
        config.data,
        seed=config.run.seed,
        eval_size=config.eval.prompts if wants_eval else 0,
        encode=_one_token if tokenizer is None else _text_encoder(tokenizer, config),
        chat=_one_token_of_chat if tokenizer is None else chat_template(tokenizer, template_args(config.data)),
        check=reference_check(config.reward),
        say=say,
    )
    first = _first_prompts(train, held_out)
    _thinking(config.reward, first)
    try:
        try_functions(config.reward, first)
    except ValueError as error:
        raise InputError(str(error)) from error
    if config.reward.by_source:
        sources = {prompt.source for prompt in (*train, *held_out)}
        if unknown := sorted(set(config.reward.by_source) - sources):
            raise InputError(
                f"reward.by_source: no prompt is from {listed(unknown)}; the sources are {listed(sorted(sources))}"
            )
    return train, held_out


def _first_prompts(train: Mixture, held_out: Sequence[Prompt]) -> list[Prompt]:
    """Return the first prompt of each part of the training data, and of each source of the held-out prompts."""
    by_source = {prompt.source: prompt for prompt in reversed(held_out)}
    return [*(part[0] for part in train.parts if part), *by_source.values()]


def _thinking(reward: RewardConfig, prompts: Iterable[Prompt]) -> None:
    """Raise InputError if a prompt opens or closes the thinking block that `format` expects in the completion."""
    own = {"opening": OPENING, "closing": CLOSING} | reward.args.get("format", {})
    for prompt in prompts:
        name = reward.by_source.get(prompt.source, reward.verifier)
        if "format" not in (reward.parts if name == COMBINED else (name,)):
            continue
        end = prompt.text.rstrip()
        if own["opening"] and end.endswith(own["opening"]):
            raise InputError(
                f"verifier format: prompts already end with {own['opening']} (source {prompt.source}), which no "
                "completion will repeat: set reward.args.format.opening=''"
            )
        if end.endswith(own["closing"]):
            raise InputError(
                f"verifier format: prompts already end with {own['closing']} (source {prompt.source}), so no "
                "completion has a thinking block: leave format out, or turn on thinking in data.template_args"
            )


def _one_token(text: str) -> Sequence[int]:
    return [0]


def _one_token_of_chat(messages: Sequence[Message]) -> tuple[str, Sequence[int]]:
    return "", [0]


def _text_encoder(tokenizer: PreTrainedTokenizerBase, config: Config) -> Encode:
    try:
        return text_encoder(tokenizer.encode)
    # A tokenizer may raise anything.
    except Exception as error:
        raise InputError(f"model.path = {config.model.path}: {error}") from error


def chat_template(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> Chat | None:
    """Return the function that turns chat messages into text and tokens, or None without a chat template."""
    if tokenizer.chat_template is None:
        return None

    def chat(messages: Sequence[Message]) -> tuple[str, Sequence[int]]:
        try:
            text = tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **arguments
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the messages: {error.message}") from error
        # A template may raise anything.
        except Exception as error:
            raise ValueError(f"the chat template fails: {type(error).__name__}: {error}") from error
        assert isinstance(text, str)
        # The template has already written the special tokens.
        return text, tokenizer.encode(text, add_special_tokens=False)

    return chat
