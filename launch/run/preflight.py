"""Checks that need the libraries but no cluster: the model folder, the verifier, what fits into what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from learner.model.lora import require_peft, target_layers
from maxpo.config import Config
from maxpo.data.order import Mixture
from maxpo.data.prompts import load_prompts
from maxpo.data.rows import Chat, Message
from maxpo.environments.registry import find_environment
from maxpo.errors import InputError
from maxpo.rewards.code.verifier import cannot_run
from maxpo.rewards.registry import find_scorer, names_in_use
from maxpo.types import Prompt
from rollout.episodes.observations import ObservationEncoder


def check_model(config: Config, *, evaluation: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer, after everything that can be told from the model folder.

    Args:
        config: a checked configuration.
        evaluation: nothing is trained, so peft is not needed.

    Raises:
        InputError: with all that is wrong, each with the key and what to do.
    """
    path, trust = config.model.path, config.model.trust_remote_code
    try:
        model = AutoConfig.from_pretrained(path, trust_remote_code=trust, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"model.path = {path} cannot be loaded: {error}") from error
    problems: list[str] = []
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    positions = getattr(model, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        problems.append(
            f"data.max_prompt_tokens + rollout.max_new_tokens = {longest}, but the model has {positions} positions: "
            "lower one of the two"
        )
    if getattr(model, "sliding_window", None) and getattr(model, "use_sliding_window", True):
        problems.append(f"{path} uses sliding-window attention, which packed training does not support")
    shared = config.learner.sequence_parallel
    queries = getattr(model, "num_attention_heads", None) or 0
    heads = {"attention": queries, "key and value": getattr(model, "num_key_value_heads", None) or queries}
    problems += [
        f"learner.sequence_parallel = {shared} does not divide the {count} {name} heads of {path}: each of the ranks "
        "that share a row takes a part of them"
        for name, count in heads.items()
        if shared > 1 and (count == 0 or count % shared)
    ]
    if shared > 1 and set(getattr(model, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        problems.append(f"learner.sequence_parallel = {shared}: not every layer of {path} is full attention")
    if config.learner.lora.rank and not evaluation:
        try:
            require_peft()
            with torch.device("meta"):
                target_layers(AutoModelForCausalLM.from_config(model, trust_remote_code=trust), config.learner.lora)
        except ValueError as error:
            problems.append(str(error))
    if tokenizer.eos_token_id is None:
        problems.append(f"{path}: the tokenizer has no end-of-sequence token, so no completion could ever end")
    try:
        find_scorer(config.reward)
    except ValueError as error:
        problems.append(f"reward.verifier: {error}")
    if config.environment.name is not None:
        try:
            find_environment(config.environment.name, config.environment.args)
        except ValueError as error:
            problems.append(f"environment.name: {error}")
        try:
            ObservationEncoder(tokenizer, config.environment.observation_role, config.data.template_args)
        except (ValueError, TemplateError) as error:
            problems.append(f"environment.observation_role: {error}")
        problems += [
            f"environment.stop: {text} is a special token, which is no text to the environment; the end of sequence "
            "ends a turn by itself"
            for text in config.environment.stop
            if text in tokenizer.all_special_tokens
        ]
    for name in names_in_use(config.reward):
        if (cannot := cannot_run(name)) is not None:
            problems.append(f"verifier {name}: {cannot}")
    if problems:
        raise InputError("; ".join(problems))
    return tokenizer


def load_data(
    config: Config, *, evaluation: bool = False, say: Callable[[str], None] = lambda line: None
) -> tuple[Mixture, list[Prompt]]:
    """Training and held-out prompts for the model's tokenizer, after `check_model`.

    Args:
        config: a checked configuration.
        evaluation: held-out prompts are wanted whatever the schedule of the training says.
        say: told what was found in each source, and what of it is left out.
    """
    tokenizer = check_model(config, evaluation=evaluation)
    wants_eval = evaluation or config.eval.at_start or config.eval.at_end or config.eval.every
    train, held_out = load_prompts(
        config.data,
        seed=config.run.seed,
        eval_size=config.eval.prompts if wants_eval else 0,
        encode=tokenizer.encode,
        chat=chat_template(tokenizer, config.data.template_args),
        say=say,
    )
    if config.reward.by_source:
        sources = {prompt.source for prompt in (*train, *held_out)}
        if unknown := sorted(set(config.reward.by_source) - sources):
            raise InputError(f"reward.by_source: no prompt is from {', '.join(unknown)}; sources are {sorted(sources)}")
    return train, held_out


def chat_template(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> Chat | None:
    """How the tokenizer writes chat messages as text and tokens; None where it has no template."""
    if tokenizer.chat_template is None:
        return None

    def chat(messages: Sequence[Message]) -> tuple[str, Sequence[int]]:
        try:
            text = tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **arguments
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses it: {error.message}") from error
        assert isinstance(text, str)
        # The template has written the special tokens that it wants.
        return text, tokenizer.encode(text, add_special_tokens=False)

    return chat
