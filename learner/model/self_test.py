"""The self-test of the learner: log-probabilities of packed rows against each sequence alone.

It measures. So no list of architectures or of configuration keys decides which models are trained right.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from learner.model.policy import LAYOUTS, Layout, Policy, use_attention
from maxpo.batches.packing import TrainBatch, pack
from maxpo.batches.samples import Sample
from maxpo.errors import InputError

LENGTHS = (9, 30, 14, 5)
"""Tokens of the test's sequences."""
PROMPT = 6
"""Number of tokens at the beginning of the third sequence that are those of the second. They are in the row once."""
VOCABULARY = 2048
"""Largest vocabulary of a random copy."""
LARGE = 300_000_000
"""Number of parameters from which `model.self_test: auto` tests a copy with few layers."""
LARGEST_GAP, MEAN_GAP = 1e-3, 1e-4
"""Differences in nats that float32 may leave."""
WORK = {"cpu": 1e10, "cuda": 1e13}
"""Most multiplications of the test of a long row, by device: less than a second."""
REFERENCE = "eager"
"""The attention of transformers that every model has, and in which nothing is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTestReport:
    """The layout of a model that the self-test has found right."""

    layout: Layout
    gap: float
    """Largest difference in nats between the layout and each sequence alone."""
    layers: int | None = None
    """Number of layers of the random copy that was tested. None: the loaded weights were."""
    cause: str | None = None
    """The reason why rows cannot be packed. None: they can."""

    def sentence(self) -> str:
        """Return a line for the start of a run."""
        tested = "the loaded weights" if self.layers is None else f"a random copy with {self.layers} layers"
        found = f"self-test of the learner on {tested}: "
        agrees = f"equals each sequence alone to {self.gap:.1e} nats"
        if self.cause is None:
            return f"{found}a packed row {agrees}"
        return (
            f"{found}{self.cause}, so sequences are not packed; one sequence a row, padded to the longest of its "
            f"microbatch, {agrees}. Padding costs time: sequences of similar lengths share a microbatch"
        )


@dataclass(frozen=True, slots=True)
class _Gap:
    """Differences of log-probabilities, in nats."""

    largest: float
    mean: float

    @classmethod
    def of(cls, got: Sequence[Tensor], expected: Sequence[Tensor]) -> _Gap:
        gaps = torch.cat(
            [(a.double() - b.double()).abs().nan_to_num(math.inf) for a, b in zip(got, expected, strict=True)]
        )
        return cls(float(gaps.max()), float(gaps.mean()))

    def within(self, rounding: _Gap) -> bool:
        """Return True if this is no more than rounding: float32's, or several times that measured in the dtype."""
        return self.largest <= max(LARGEST_GAP, 5 * rounding.largest) and self.mean <= max(MEAN_GAP, 2 * rounding.mean)


def layout_of(lm: PreTrainedModel, layers: int | None = None, token_budget: int = 0) -> SelfTestReport:
    """Test a model on the device that it is on, and return the layout to train it with.

    Args:
        lm: the model as it will be trained, or a copy. Nothing of it is changed.
        layers: number of layers of a copy, for the report.
        token_budget: number of tokens of the longest row. The test's sequences are also put at the end of such a row,
            or of a shorter one if the device would work too long, in case a layer looks at places in the row.

    Raises:
        InputError: neither packed nor padded rows give the log-probabilities of a sequence alone.
    """
    name, training = type(lm).__name__, {module: module.training for module in lm.modules()}
    lm.eval()
    sequences = _sequences(lm)
    try:
        with torch.no_grad(), _attention_restored(lm):
            alone = _alone(lm, sequences)
            if not all(bool(x.isfinite().all()) for x in alone):
                raise InputError(f"{name}: its log-probabilities are not finite, even of one sequence alone")
            rounding = _rounding(lm, sequences, alone)
            tried: dict[Layout, str] = {}
            for layout in LAYOUTS:
                gap, problem = _measure(lm, layout, sequences, alone)
                if layout == "packed" and gap.within(rounding):
                    rounds = _rounds(lm, token_budget)
                    gap, problem = _measure(lm, layout, sequences, alone, rounds)
                    problem = (
                        problem
                        or f"at the end of a row of {rounds * sum(LENGTHS)} tokens it is {gap.largest:.2g} nats off"
                    )
                if gap.within(rounding):
                    cause = tried["packed"] if tried else None
                    return SelfTestReport(layout=layout, gap=gap.largest, layers=layers, cause=cause)
                tried[layout] = problem or f"{_culprit(lm, layout, sequences, rounding)} ({gap.largest:.2g} nats)"
    finally:
        for module, was in training.items():
            module.training = was
    raise InputError(
        f"{name} cannot be trained: its log-probabilities in a batch differ from those of each sequence alone. "
        f"Packed rows: {tried['packed']}. One sequence a row: {tried['eager']}"
    )


def _sequences(lm: PreTrainedModel) -> list[Tensor]:
    """Return random tokens of the test's lengths, without special tokens at the ends of the vocabulary."""
    size: int = lm.get_input_embeddings().weight.shape[0]  # pyright: ignore
    generator = torch.Generator().manual_seed(0)
    special = [getattr(lm.config, f"{name}_token_id", None) for name in ("pad", "eos", "bos")]  # one, or a list
    flat = {i for x in special for i in (x if isinstance(x, list) else [x])}
    allowed = torch.tensor([i for i in range(min(size, 50_000)) if i not in flat])
    device = next(lm.parameters()).device
    sequences = [allowed[torch.randint(len(allowed), (n,), generator=generator)] for n in LENGTHS]
    sequences[2][:PROMPT] = sequences[1][:PROMPT]
    return [tokens.to(device) for tokens in sequences]


def _alone(lm: PreTrainedModel, sequences: Sequence[Tensor]) -> list[Tensor]:
    """Return the log-probabilities of the second and further tokens by the model's own forward pass."""
    use_attention(lm, REFERENCE)
    found: list[Tensor] = []
    for tokens in sequences:
        logits = lm(input_ids=tokens[None], use_cache=False).logits[0, :-1].float()
        found.append(logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0])
    return found


def _rounding(lm: PreTrainedModel, sequences: Sequence[Tensor], alone: Sequence[Tensor]) -> _Gap:
    """Return what the number format of the weights changes, 0 for float32."""
    if lm.dtype == torch.float32:
        return _Gap(0.0, 0.0)
    return _Gap.of(alone, _alone(copy.deepcopy(lm).float(), sequences))


def _rounds(lm: PreTrainedModel, token_budget: int) -> int:
    """Return how often the test's sequences are repeated in the test of a long row."""
    size = sum(p.numel() for p in lm.parameters())
    most = min(token_budget, int(WORK[lm.device.type] / size))
    return max(1, most // sum(LENGTHS))


def _measure(
    lm: PreTrainedModel, layout: Layout, sequences: Sequence[Tensor], alone: Sequence[Tensor], rounds: int = 1
) -> tuple[_Gap, str | None]:
    """Return the difference of a layout from each sequence alone, and an error of the model, if it raised one.

    The sequences are repeated `rounds` times in the row, and the last of them are compared.
    """
    try:
        shared = [(i, 0) if i % len(LENGTHS) != 2 else (i - 1, PROMPT) for i in range(len(LENGTHS) * rounds)]
        row = replace(row_of(list(sequences) * rounds), shared=tuple(shared))
        logprobs, _ = Policy(lm, layout=layout)(row, temperature=1.0, chunk=1024)
        logprobs = logprobs[-sum(LENGTHS) :]
    # Models raise whatever their code happens to raise on a row that they do not understand.
    except Exception as error:
        return _Gap(math.inf, math.inf), f"{type(lm).__name__} raises {type(error).__name__}: {error}"
    return _Gap.of([part[1:] for part in logprobs.split([len(x) for x in sequences])], alone), None


def row_of(sequences: Sequence[Tensor]) -> TrainBatch:
    """Return a packed row of token sequences, each token but the first of a sequence in the loss."""
    samples = [
        Sample(
            group=0,
            index=index,
            token_ids=tokens.cpu().numpy().astype(np.int32),
            loss_mask=np.arange(len(tokens)) > 0,
            rollout_logprobs=np.zeros(len(tokens), np.float32),
        )
        for index, tokens in enumerate(sequences)
    ]
    return pack(samples, torch.ones(1, len(samples)), lambda sample: 1.0).to(sequences[0].device)


def _culprit(lm: PreTrainedModel, layout: Layout, sequences: Sequence[Tensor], rounding: _Gap) -> str:
    """Name the first layer whose output for some token is not the one that it has for the sequence alone."""
    alone: dict[str, list[Tensor]] = {}
    use_attention(lm, REFERENCE)
    for tokens in sequences:
        with _outputs(lm, len(tokens)) as outputs:
            lm(input_ids=tokens[None], use_cache=False)
        for name, output in outputs.items():
            alone.setdefault(name, []).append(output)
    total = len(sequences) * max(LENGTHS) if layout != "packed" else sum(LENGTHS)
    policy, row = Policy(lm, layout=layout), replace(row_of(sequences), shared=())
    with _outputs(lm, total) as outputs:
        policy(row, temperature=1.0, chunk=16)
    for name, output in outputs.items():
        if layout != "packed":
            rows = output.unflatten(0, (len(sequences), -1))
            output = torch.cat([part[: len(tokens)] for part, tokens in zip(rows, sequences, strict=True)])
        # The size of some outputs depends on the length of the sequence, such as of scores of keys.
        if {part.shape[1:] for part in alone.get(name, [])} != {output.shape[1:]}:
            continue
        expected = torch.cat(alone[name])
        tolerance = 1e-3 + rounding.largest
        if float((output - expected).abs().max()) > tolerance * float(expected.abs().max()):
            # A module without modules of its own, such as a norm, only passes on what the layer around it has mixed.
            while "." in name and not list(lm.get_submodule(name).children()):
                name = name.rpartition(".")[0]
            return f"the output of {type(lm.get_submodule(name)).__name__} ({name}) depends on other sequences"
    return "some layer's output depends on other sequences"


@contextmanager
def _outputs(lm: PreTrainedModel, tokens: int) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs [tokens, ...] of all modules, in the order in which they end."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: object) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and first.ndim == 3 and first.shape[0] * first.shape[1] == tokens:
            outputs.setdefault(name, first.detach().flatten(0, 1).float())

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name, module in lm.named_modules()
        if name
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _attention_restored(lm: PreTrainedModel) -> Iterator[None]:
    before = lm.config._attn_implementation
    try:
        yield
    finally:
        use_attention(lm, before or REFERENCE)


def small_copy(config: PretrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return a random model with the first layers of a large one, every kind of layer among them.

    Weights have the scale that keeps the size of activations, so that a wrong layer shows in the log-probabilities.

    Args:
        config: the configuration of the large model.
        dtype: number format of the weights.
        trust_remote_code: run Python code that comes with the model.
    """
    few = copy.deepcopy(config)
    total: int = config.num_hidden_layers
    few.num_hidden_layers = min(total, _first_of_each_kind(config, trust_remote_code))
    for key, value in vars(config).items():
        # Settings of each layer, such as `layer_types`.
        if isinstance(value, list) and len(value) == total:
            setattr(few, key, value[: few.num_hidden_layers])
        # Rows of the embedding mix no tokens. Most weights of the copy would be there.
        if key.endswith("_token_id") and isinstance(value, int):
            setattr(few, key, min(value, VOCABULARY - 1))
    few.vocab_size = min(config.vocab_size, VOCABULARY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm: Any = AutoModelForCausalLM.from_config(few, dtype=dtype, trust_remote_code=trust_remote_code)
        randomize(lm)
    return lm


def randomize(lm: nn.Module) -> None:
    """Give every matrix weights of variance 1 / inputs, and shake all other weights and buffers of zeros, in place."""
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim > 1:
                limit = (3 / parameter.shape[-1]) ** 0.5
                parameter.uniform_(-limit, limit)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        persistent = set(lm.state_dict())
        for name, buffer in lm.named_buffers():
            # Not those that hold a table, such as a mask. A router's bias starts as zeros.
            if name in persistent and buffer.is_floating_point() and buffer.numel() > 1 and bool((buffer == 0).all()):
                buffer.add_(torch.randn_like(buffer) * 0.1)


def _first_of_each_kind(config: PretrainedConfig, trust_remote_code: bool) -> int:
    """Return the number of first layers that hold every kind of layer, at least 2.

    Layers are of one kind if they have the same modules, shapes of weights and plain settings.
    """
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    total: int = config.num_hidden_layers
    lists = [m for m in lm.modules() if isinstance(m, nn.ModuleList) and len(m) == total]
    if not lists:
        return total
    kinds: list[object] = []
    for layer in lists[0]:
        kinds.append(
            [
                (name, type(module), *(item for item in sorted(vars(module).items()) if _plain(*item)))
                for name, module in layer.named_modules()
            ]
            + [(name, parameter.shape) for name, parameter in layer.named_parameters()]
        )
    firsts = [kinds.index(kind) for kind in kinds]
    return max(2, *(first + 1 for first in firsts))


def _plain(name: str, value: object) -> bool:
    return isinstance(value, int | float | str | None) and "idx" not in name and "index" not in name
