"""Tokens that end a completion, and the text before them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rollout.protocols import Tokenizer


def stop_ids(tokenizer: Tokenizer, model_path: str, *, trust_remote_code: bool) -> frozenset[int]:
    """Return the tokens after which vLLM ends a completion by itself.

    These are the tokenizer's end of sequence and `eos_token_id` of generation_config.json, which may be a list. Without
    that file, `eos_token_id` of config.json counts.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(model_path, local_files_only=True)
    except OSError:
        model = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code, local_files_only=True)
        generation = GenerationConfig.from_model_config(model)
    named: object = generation.eos_token_id
    listed: list[object] = list(named) if isinstance(named, list) else [named]  # pyright: ignore[reportUnknownArgumentType]
    return frozenset(token for token in (tokenizer.eos_token_id, *listed) if isinstance(token, int))


def text_of(tokenizer: Tokenizer, token_ids: Sequence[int], stops: Collection[int]) -> str:
    """Return the text of a completion without the stop tokens and padding at its end.

    Other special tokens stay: a verifier may look for them, such as `<think>` in a model that has a token for it.
    """
    end = len(token_ids)
    while end and token_ids[end - 1] == tokenizer.pad_token_id:
        end -= 1
    if not (end and token_ids[end - 1] in stops):
        end = len(token_ids)  # a pad token that the policy has sampled as any other
    while end and token_ids[end - 1] in stops:
        end -= 1
    return tokenizer.decode(token_ids[:end], skip_special_tokens=False)
