"""Every architecture of the catalogue is trained right, or refused with a sentence, as docs/models.md says."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.models import DOCUMENT, RESULTS, document
from benchmarks.tiny_models import CATALOGUE, NOT_TEXT, VOCABULARY, make, names
from learner.model.policy import Policy, use_attention
from learner.model.rotary import fix_rotary_length
from learner.model.self_test import layout_of, row_of
from maxpo.errors import InputError

LENGTHS = (17, 3, 40, 2, 17, 33, 9)
"""Other lengths than those of the self-test: equal ones, one and several windows."""
LONGEST = 256
LISTED = dict(re.findall(r"^\| ([^|]+) \| [\d,]+ \| (\w+) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
"""The rows of each model, as docs/models.md says."""


def model(name: str) -> PreTrainedModel:
    lm = make(name)
    fix_rotary_length(lm, LONGEST)
    return lm


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in LENGTHS]


def by_transformers(lm: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Log-probabilities of the second and further tokens."""
    logits = lm(input_ids=tokens[None], use_cache=False).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0]


@pytest.mark.parametrize("name", names())
@torch.no_grad()
def test_the_learner_computes_the_models_own_log_probabilities(name: str) -> None:
    plain, lm, tokens = model(name), model(name), sequences()
    use_attention(plain, "eager")
    expected = torch.cat([by_transformers(plain, x) for x in tokens])
    try:
        report = layout_of(lm)
    except InputError as error:
        assert str(error).startswith(f"{type(lm).__name__} cannot be trained: ")
        assert LISTED[name] == "refused", error
        return
    assert LISTED[name] == ("packed" if report.layout == "packed" else "padded"), report.cause
    logprobs, _ = Policy(lm, layout=report.layout)(row_of(tokens), temperature=1.0, chunk=16)
    got = torch.cat([part[1:] for part in logprobs.split(LENGTHS)])
    assert float((got - expected).abs().max()) < 1e-4
    # Otherwise any model would do.
    assert float(expected.std()) > 0.1


def test_the_catalogue_has_every_text_decoder_of_transformers() -> None:
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - NOT_TEXT == set(CATALOGUE)


def test_the_document_has_every_model_of_the_catalogue() -> None:
    assert sorted(LISTED) == names(), "run python benchmarks/models.py --write"


def test_the_document_is_made_from_the_results() -> None:
    made = document(json.loads(RESULTS.read_text(encoding="utf-8")))
    # But for the last line, which names the machine.
    assert DOCUMENT.read_text(encoding="utf-8").splitlines()[:-1] == made.splitlines()[:-1]
