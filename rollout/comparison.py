"""Comparison of what an engine computes with what the learner computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from maxpo.batches.agreement import Agreement, allowed_mean
from maxpo.batches.samples import Sample, samples_of
from maxpo.errors import RunError
from maxpo.types import Completion, Group, Prompt
from rollout.protocols import Probe


def compare(
    name: str,
    probe: Probe,
    logprobs: Callable[[Sequence[Sample]], list[list[float]]],
    dtypes: Sequence[str],
    temperature: float,
) -> Agreement:
    """Compare the completions of a probe with the learner.

    Args:
        name: name of the engine.
        probe: completions of fixed prompts.
        logprobs: the learner's log-probabilities of samples.
        dtypes: number formats of engine and learner.
        temperature: sampling temperature, which both log-probabilities include.

    Raises:
        RunError: the mean difference is more than rounding.
    """
    samples = [
        sample
        for number, (ids, completion) in enumerate(zip(probe.prompts, probe.together, strict=True))
        for sample in samples_of(number, Group(prompt=_prompt(ids), completions=(completion,)))
    ]
    found = Agreement.of(samples, logprobs(samples))
    allowed = allowed_mean(dtypes, run_to_run(probe.together, probe.alone), temperature)
    if found.mean > allowed:
        length = len(probe.prompts[samples[found.worst].group])
        raise RunError(
            f"{name} does not compute what the learner computes: their log-probabilities of {found.tokens} sampled "
            f"tokens differ by {found.mean:.2g} nats on average and {found.largest:.2g} at most (at token "
            f"{found.position - length + 1} after a prompt of {length} tokens), and rounding of "
            f"{' and '.join(dict.fromkeys(dtypes))} explains {allowed:.2g} on average. All weights have arrived, so "
            "suspect a layer that the engine repacks or does not reload, a buffer that is not sent, rotary factors for "
            "long sequences, rollout.engine_args such as quantization, or an engine with a part of the model only. "
            "Start again with rollout.dtype and learner.dtype float32, and without rollout.engine_args. If the "
            "difference stays, this engine cannot sample for this model. docs/models.md lists the models that were "
            "compared"
        )
    return found


def run_to_run(together: Sequence[Completion], alone: Sequence[Completion]) -> float:
    """Return the mean difference of an engine from itself in nats, over the tokens before the first different one."""
    differences = [np.zeros(0, np.float32)]
    for a, b in zip(together, alone, strict=True):
        length = min(len(a.token_ids), len(b.token_ids))
        equal = np.logical_and.accumulate(a.token_ids[:length] == b.token_ids[:length])
        differences.append(np.abs(a.logprobs[:length] - b.logprobs[:length])[equal])
    found = np.concatenate(differences)
    return float(found.mean(dtype=np.float64)) if len(found) else 0.0


def _prompt(token_ids: tuple[int, ...]) -> Prompt:
    return Prompt(prompt_id="probe", text="", token_ids=token_ids, reference=None, source="probe")
