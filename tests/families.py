"""Tokenizers and chat templates in the style of well-known model families, made without a download."""

from __future__ import annotations

from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_WORDS = ("question", "answer", "user", "assistant", "tool", "think", "the", "42", "\n", "\n\n")


class Family(NamedTuple):
    """What a tokenizer of this family looks like. Templates are our own, in the family's style."""

    special: tuple[str, ...]
    """Special tokens."""
    bos: str | None
    eos: str | None
    stops: tuple[str, ...]
    """`eos_token_id` of generation_config.json, the end of a turn first."""
    template: str
    metaspace: bool = False
    """True for a SentencePiece-like tokenizer, False for byte-level BPE."""
    adds: str = ""
    """Template of the post-processor, such as `<s> $A`."""
    role: str = "user"
    """Role of observations."""


def _turns(begin: str, end: str, generation: str, before: str = "", assistant: str = "assistant") -> str:
    name = f"{{% if m.role == 'assistant' %}}{assistant}{{% else %}}{{{{ m.role }}}}{{% endif %}}"
    header = begin.replace("ROLE", name)
    return (
        f"{before}{{% for m in messages %}}{header}{{{{ m.content | trim }}}}{end}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{generation}{{% endif %}}"
    )


_NL = "{{ '\\n' }}"
FAMILIES = {
    "qwen": Family(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        None,
        "<|im_end|>",
        ("<|im_end|>", "<|endoftext|>"),
        _turns(f"<|im_start|>ROLE{_NL}", f"<|im_end|>{_NL}", f"<|im_start|>assistant{_NL}"),
        role="tool",
    ),
    "gemma": Family(
        ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",
        ("<end_of_turn>", "<eos>"),
        _turns(
            f"<start_of_turn>ROLE{_NL}",
            f"<end_of_turn>{_NL}",
            f"<start_of_turn>model{_NL}",
            before="{{ bos_token }}",
            assistant="model",
        ),
        adds="<bos> $A",
    ),
    "phi": Family(
        ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"),
        "<s>",
        "<|endoftext|>",
        ("<|end|>", "<|endoftext|>"),
        _turns(f"<|ROLE|>{_NL}", f"<|end|>{_NL}", f"<|assistant|>{_NL}")
        + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
        metaspace=True,
    ),
    "glm": Family(
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>"),
        None,
        "<|endoftext|>",
        ("<|user|>", "<|observation|>", "<|endoftext|>"),
        _turns(f"<|ROLE|>{_NL}", "", "<|assistant|>", before="[gMASK]<sop>"),
        adds="[gMASK] <sop> $A",
    ),
    "llama": Family(
        (
            "<|begin_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|eom_id|>",
            "<|end_of_text|>",
        ),
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        _turns(
            f"<|start_header_id|>ROLE<|end_header_id|>{_NL}{_NL}",
            "<|eot_id|>",
            f"<|start_header_id|>assistant<|end_header_id|>{_NL}{_NL}",
            before="{{ bos_token }}",
        ),
        adds="<|begin_of_text|> $A",
    ),
    "mistral": Family(
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "<s>",
        "</s>",
        ("</s>",),
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content | trim }}</s>"
        "{% else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}",
        metaspace=True,
        adds="<s> $A </s>",
    ),
}


def build(name: str) -> Any:
    """Return the tokenizer of a family."""
    family = FAMILIES[name]
    if family.metaspace:
        alphabet = [*map(chr, range(32, 127)), "\n", "▁"]
        vocab = {token: index for index, token in enumerate(["<unk>", *alphabet, *(f"▁{w}" for w in _WORDS[:8])])}
        core = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        core.decoder = decoders.Sequence([decoders.Metaspace(prepend_scheme="first")])
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [(a, b) for a, b in (("4", "2"), ("Ċ", "Ċ"), ("t", "h"), ("th", "e"))]
        vocab = {token: index for index, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
        core = Tokenizer(models.BPE(vocab, merges))
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\s*\n+|[^\s\d]+|\d+|\s+"), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in family.special])
    if family.adds:
        ids = [(text, core.token_to_id(text)) for text in family.special]
        core.post_processor = processors.TemplateProcessing(single=family.adds, special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)
    tokenizer.add_special_tokens(
        {
            **({"bos_token": family.bos} if family.bos else {}),
            **({"eos_token": family.eos} if family.eos else {}),
        }
    )
    tokenizer.chat_template = family.template
    return tokenizer
