"""Checks that need the libraries but no cluster: model folder, verifier, environment and data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from learner.model.loading import self_test
from learner.model.lora import coverage, require_peft, target_layers
from maxpo.config import Config, RewardConfig
from maxpo.config.reward import COMBINED
from maxpo.data.order import Mixture
from maxpo.data.prompts import load_prompts
from maxpo.data.rows import Chat, Encode, Message
from maxpo.data.templates import template_args, text_encoder
from maxpo.environments.registry import find_environment
from maxpo.errors import InputError
from maxpo.rewards.code.verifier import cannot_run
from maxpo.rewards.registry import find_scorer, names_in_use
from maxpo.rewards.verifiers.thinking_format import OPENING
from maxpo.types import Prompt
from rollout.endings import stop_ids
from rollout.episodes.observations import ObservationEncoder


@dataclass(frozen=True, slots=True)
class _Subject:
    """Subject of the checks."""

    config: Config
    model: PretrainedConfig
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
    path, trust = config.model.path, config.model.trust_remote_code
    try:
        model = AutoConfig.from_pretrained(path, trust_remote_code=trust, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust, local_files_only=True)
    # The files of a model, and code that comes with it, may fail in any way.
    except Exception as error:
        raise InputError(f"model.path = {path} cannot be loaded: {type(error).__name__}: {error}") from error
    if not set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()):
        raise InputError(
            f"model.path = {path} has no tokenizer: transformers finds no tokens there. Copy the tokenizer's files "
            "(tokenizer.json and tokenizer_config.json, or tokenizer.model) into the folder"
        )
    subject = _Subject(config, model, tokenizer, evaluation)
    if problems := [problem for check in CHECKS for problem in check(subject)]:
        raise InputError("; ".join(problems))
    return tokenizer


def _length(s: _Subject) -> Iterator[str]:
    longest = s.config.data.max_prompt_tokens + s.config.rollout.max_new_tokens
    positions = getattr(s.model, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        yield (
            f"data.max_prompt_tokens + rollout.max_new_tokens = {longest}, but the model has {positions} positions: "
            "lower one of the two"
        )


def _sequence_parallel(s: _Subject) -> Iterator[str]:
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


def _adapter(s: _Subject) -> Iterator[str]:
    lora = s.config.learner.lora
    if not lora.rank or s.evaluation:
        return
    try:
        require_peft()
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(s.model, trust_remote_code=s.config.model.trust_remote_code)
            target_layers(lm, lora)
    except ValueError as error:
        yield str(error)


def _end_of_sequence(s: _Subject) -> Iterator[str]:
    if not s.stops:
        yield (
            f"{s.path}: neither the tokenizer nor generation_config.json has an end-of-sequence token, so no "
            "completion could ever end"
        )


def _vocabulary(s: _Subject) -> Iterator[str]:
    size = getattr(s.model.get_text_config(), "vocab_size", None)
    outside = sorted((token, text) for text, token in s.tokenizer.get_vocab().items() if size and token >= size)
    if outside:
        shown = ", ".join(f"{text!r} = {token}" for token, text in outside[:5])
        yield (
            f"{s.path}: the tokenizer has {len(outside)} tokens that the model's vocabulary of {size} lacks: {shown}; "
            "take the tokenizer that belongs to the model, or enlarge the model's embedding"
        )


def _scorer(s: _Subject) -> Iterator[str]:
    try:
        find_scorer(s.config.reward)
    except ValueError as error:
        yield f"reward.verifier: {error}"


def _environment(s: _Subject) -> Iterator[str]:
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


def _verifiers(s: _Subject) -> Iterator[str]:
    for name in names_in_use(s.config.reward):
        if (reason := cannot_run(name)) is not None:
            yield f"verifier {name}: {reason}"


CHECKS = (
    _length,
    _sequence_parallel,
    _adapter,
    _end_of_sequence,
    _vocabulary,
    _scorer,
    _environment,
    _verifiers,
)
"""Checks of `check_model`. Each yields the problems that it finds."""


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
    tokenizer = check_model(config, evaluation=evaluation)
    wants_eval = evaluation or config.eval.at_start or config.eval.at_end or config.eval.every
    train, held_out = load_prompts(
        config.data,
        seed=config.run.seed,
        eval_size=config.eval.prompts if wants_eval else 0,
        encode=_text_encoder(tokenizer, config),
        chat=chat_template(tokenizer, template_args(config.data)),
        say=say,
    )
    _thinking(config.reward, train[0])
    if config.reward.by_source:
        sources = {prompt.source for prompt in (*train, *held_out)}
        if unknown := sorted(set(config.reward.by_source) - sources):
            raise InputError(f"reward.by_source: no prompt is from {', '.join(unknown)}; sources are {sorted(sources)}")
    return train, held_out


def _thinking(reward: RewardConfig, prompt: Prompt) -> None:
    """Raise InputError if a prompt opens the thinking block that the verifier `format` expects in the completion."""
    name = reward.by_source.get(prompt.source, reward.verifier)
    if "format" not in (reward.parts if name == COMBINED else (name,)):
        return
    opening = reward.args.get("format", {}).get("opening", OPENING)
    if opening and prompt.text.rstrip().endswith(opening):
        raise InputError(
            f"verifier format: prompts already end with {opening}, which no completion will repeat: set "
            "reward.args.format.opening=''"
        )


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
