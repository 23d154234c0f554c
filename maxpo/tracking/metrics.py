"""Name, meaning and unit of every metric. `python -m maxpo.tracking.metrics` prints METRICS.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

METRICS: dict[str, tuple[str, str]] = {
    "reward/mean": ("Mean reward of the valid completions sampled in this step", "reward"),
    "reward/max@{k}": (
        "Unbiased estimate of the best reward of K samples, mean over the groups of this step (pass@K for 0/1 rewards)",
        "reward",
    ),
    "reward/{part}": ("Mean of a named part of the reward, or of one verifier with reward.verifier combined", "reward"),
    "reward/{verifier}/{part}": ("Mean of a named part of one verifier, with reward.verifier combined", "reward"),
    "groups/sampled": ("Groups sampled in this step, refills included", "count"),
    "groups/kept": ("Groups that reached the learner", "count"),
    "groups/zero_signal": ("Groups dropped because all their advantages are zero", "count"),
    "groups/too_few_valid": ("Groups dropped because too many of their samples are invalid", "count"),
    "groups/refill_rounds": ("Rounds of sampling new prompts in place of dropped groups", "count"),
    "completions/tokens_mean": ("Mean length of a completion", "tokens"),
    "completions/truncated": ("Completions cut at rollout.max_new_tokens or environment.max_turns", "fraction"),
    "completions/truncated_mask": ("Scored completions masked because they were cut, by algorithm.truncated", "count"),
    "completions/truncated_zero": (
        "Scored completions with reward 0 because they were cut, by algorithm.truncated",
        "count",
    ),
    "completions/unique": ("Different completions of a group divided by its size, mean over groups", "fraction"),
    "staleness/mean": (
        "Mean age of the tokens of this step, in updates of the weights since they were sampled",
        "updates",
    ),
    "staleness/max": ("Age of the oldest token of this step. At most pipeline.max_staleness, always", "updates"),
    "staleness/lag_{n}": (
        "Tokens of this step that are n updates old, with pipeline.max_staleness above 0",
        "fraction",
    ),
    "staleness/spans": ("Completions that were sampled by more than one version of the weights", "fraction"),
    "staleness/admitted_mean": ("Mean number of steps between the admission of a group and this step", "steps"),
    "buffer/pending": ("Groups that were admitted before this step and not yet trained", "count"),
    "buffer/ready": ("Those of them that were scored when this step began", "count"),
    "buffer/waited_for_oldest": (
        "Groups that were waited for although others were ready. In most steps above 0: max_staleness is small",
        "count",
    ),
    "environment/turns": ("Mean turns of the policy in an episode. Absent without environment.name", "count"),
    "environment/tokens": ("Mean tokens of observations in an episode", "tokens"),
    "verifier/too_long": (
        "Answers over reward.max_chars, not read and masked. For length they count, with the full penalty",
        "count",
    ),
    "verifier/timeout": (
        "Answers masked because verification exceeded reward.timeout_s, or an environment step its timeout",
        "count",
    ),
    "verifier/undecided": ("Answers masked because the verifier could not decide if they are right", "count"),
    "verifier/error": ("Answers masked because the verifier or the environment raised an error", "count"),
    "verifier/died": ("Answers masked because the process of the verifier or environment died", "count"),
    "verifier/abort": ("Completions masked because sampling gave no usable sample", "count"),
    "algorithm/k": ("Mean K of the groups sampled in this step", "1"),
    "algorithm/mix_weight": ("Weight of algorithm.mix_with", "1"),
    "algorithm/lam": ("Weight of maxpo in the estimator interpolated. Absent with lam: v", "1"),
    "algorithm/entropy_coef": ("Weight of the entropy bonus, with algorithm.entropy_target", "1"),
    "probe/groups": ("Groups of this step whose samples' gradients were taken", "count"),
    "probe/second_moment/{estimator}": ("Mean squared gradient of a group under an estimator, divided by maxpo's", "1"),
    "probe/kappa": (
        "Squared score of failures divided by that of successes, each around its mean. Absent if no group has two of "
        "both",
        "1",
    ),
    "probe/along": ("Mean inner product of the gradient of pkpo_loo_minus_one and that of maxpo minus it", "1"),
    "probe/apart": ("Mean squared difference of these two gradients", "1"),
    "advantage/mean": (
        "Mean advantage of the valid samples of every usable group, groups without signal included",
        "reward",
    ),
    "advantage/second_moment": ("Mean squared advantage of the same samples as advantage/mean", "reward^2"),
    "advantage/nonzero": ("Share of non-zero advantages among the same samples as advantage/mean", "fraction"),
    "shadow/{estimator}/mean": ("Mean advantage of another estimator on the same samples", "reward"),
    "shadow/{estimator}/second_moment": ("Mean squared advantage of another estimator", "reward^2"),
    "shadow/{estimator}/nonzero": ("Share of non-zero advantages of another estimator", "fraction"),
    "shadow/{estimator}/correlation": (
        "Correlation of another estimator with the advantages in use. Absent if one is constant",
        "1",
    ),
    "shadow/{estimator}/refused": ("1 if another estimator refuses these rewards or this K, else 0", "1"),
    "advantage/abs_mean": ("Mean absolute advantage of the valid samples that the learner received", "reward"),
    "advantage/group_sum_max": (
        "Largest absolute sum of advantages of a group. 0 up to rounding for a centred estimator",
        "reward",
    ),
    "train/loss": ("Loss with its global denominators, mean over the optimizer steps taken", "loss"),
    "train/grad_norm": ("Norm of the gradient before clipping, mean over the optimizer steps taken", "norm"),
    "train/lr": ("Learning rate of the last optimizer step", "1"),
    "train/optimizer_steps": ("Optimizer steps since the start", "count"),
    "train/refused_steps": ("Optimizer steps skipped because loss or gradient was not finite", "count"),
    "train/overflow_steps": (
        "Optimizer steps skipped because the scaled gradient overflowed, with learner.dtype float16",
        "count",
    ),
    "train/loss_scale": ("Loss scale after the step, with learner.dtype float16", "1"),
    "train/sequences": ("Sequences that the learner computed", "count"),
    "train/zero_advantage": ("Valid sequences of the kept groups left out because their advantage is zero", "fraction"),
    "train/tokens": ("Loss tokens of the optimizer steps taken", "tokens"),
    "train/microbatches": ("Packed rows of one learner rank", "count"),
    "policy/entropy": (
        "Mean entropy of the token distributions. All policy/ and mismatch/ metrics are over train/tokens",
        "nats",
    ),
    "policy/approx_kl": ("Mean estimate (k3) of the KL divergence from the policy at the start of the step", "nats"),
    "policy/clipped_low": ("Tokens at the lower clip bound with negative advantage", "fraction"),
    "policy/clipped_high": ("Tokens at the upper clip bound with positive advantage", "fraction"),
    "policy/reference_kl": (
        "Mean estimate (k3, whatever algorithm.kl_estimator is) of the KL divergence to the frozen starting model",
        "nats",
    ),
    "mismatch/kl": (
        "Mean estimate (k3) of the KL divergence between sampler and learner on the sampled tokens "
        "(limit: rollout.max_mismatch_kl)",
        "nats",
    ),
    "mismatch/kl_lag_{n}": (
        "The same over tokens that are n updates old, with max_staleness above 0. The limit holds for n = 0 then",
        "nats",
    ),
    "mismatch/logprob_abs": ("Mean absolute difference of log-probabilities, sampler against learner", "nats"),
    "mismatch/tis_mean": ("Mean truncated importance weight", "ratio"),
    "mismatch/masked": ("Share of the tokens outside algorithm.token_mask or algorithm.sequence_mask", "fraction"),
    "mismatch/tis_capped": ("Tokens with an importance weight capped at algorithm.tis_cap", "fraction"),
    "time/step_s": ("Full step without evaluation", "s"),
    "time/generate_s": ("Waiting until the groups of this step are sampled", "s"),
    "time/score_s": ("Waiting from then until they are scored", "s"),
    "time/overlap_s": ("Part of the learner update during which groups were sampled or scored", "s"),
    "time/probe_s": ("Probe of the estimators' gradients", "s"),
    "time/update_s": ("Learner update", "s"),
    "time/pack_s": ("Advantages and packing, part of the learner update", "s"),
    "time/sync_s": ("Sending weights to the engines", "s"),
    "time/confirm_s": ("Comparing versions and checksums with every engine", "s"),
    "time/checkpoint_s": (
        "Wait of training for a checkpoint: the write or, with checkpoint.asynchronous, the copy",
        "s",
    ),
    "time/checkpoint_write_s": (
        "Writing a checkpoint in the background, logged with the step in which the write ended",
        "s",
    ),
    "checkpoint/copies_failed": ("Checkpoints that could not be copied to checkpoint.remote since the start", "count"),
    "throughput/generate_tokens_per_s": (
        "Tokens of this step per second of time/generate_s and of the last time/overlap_s",
        "tokens/s",
    ),
    "throughput/train_tokens_per_s": ("Loss tokens per second of the learner update", "tokens/s"),
    "memory/learner_rss_mib": ("Resident memory of learner rank 0", "MiB"),
    "memory/rollout_rss_mib": ("Resident memory of the largest rollout worker with its engine", "MiB"),
    "pipeline/learner_idle": ("Part of the step in which the learner neither updates nor sends weights", "fraction"),
    "pipeline/engines_idle": ("Time of the rollout workers without any group, mean over the workers", "fraction"),
    "pipeline/engines_filled": (
        "Sequences of the groups that the workers hold, as a share of rollout.max_concurrent_sequences, at most 1",
        "fraction",
    ),
    "rollout/restarts": ("Rollout workers restarted since the start of the run", "count"),
    "rollout/workers_alive": ("Rollout workers that can sample at the end of the step", "count"),
    "rollout/groups_resampled": (
        "Groups sampled again since the start of the run because their worker was lost",
        "count",
    ),
    "data/epoch": ("Passes over the training prompts", "1"),
    "weights/version": ("Version of the weights after this step", "1"),
    "eval/pass@{k}": (
        "Unbiased pass@k on held-out prompts. The verifier says what a success is (all eval/: docs/evaluation.md)",
        "fraction",
    ),
    "eval/max@{k}": ("Unbiased max@k. Absent if every reward is 1 for a success and 0 otherwise", "reward"),
    "eval/avg@{n}": ("Mean reward of the n = eval.samples completions of a prompt, mean over prompts", "reward"),
    "eval/maj@{n}": (
        "Success of the most frequent answer. Absent if the verifier does not extract answers",
        "fraction",
    ),
    "eval/greedy": ("Mean reward of one greedy completion for each prompt, with eval.greedy", "reward"),
    "eval/{figure}/low": ("Lower end of the 95 % bootstrap interval over prompts, for each figure above", "as above"),
    "eval/{figure}/high": ("Upper end of the same interval", "as above"),
    "eval/no_answer": ("Valid completions without an answer, which have no vote in maj@n", "fraction"),
    "eval/unique": ("Different completions of a prompt divided by their number", "fraction"),
    "eval/solved": ("Held-out prompts with at least one success", "fraction"),
    "eval/mismatch_kl": (
        "As mismatch/kl, for a few completions of the evaluation (limit: rollout.max_mismatch_kl)",
        "nats",
    ),
    "eval/dropped_prompts": ("Held-out prompts left out because too many of their samples are invalid", "count"),
    "eval/{source}/{name}": (
        "Each eval/ metric for the prompts of one source, if there are several sources",
        "as above",
    ),
    "time/eval_s": ("Evaluation", "s"),
}
"""Name, with {placeholders} -> (meaning, unit). Logging any other name is an error."""

_FIGURE = r"(?:(?:pass|max|avg|maj)@\d+|greedy)"


def pattern_of(name: str, figure: str = _FIGURE, values: Mapping[str, str] = MappingProxyType({})) -> re.Pattern[str]:
    """Return the pattern of a name in `METRICS`.

    Args:
        name: Name with {placeholders}.
        figure: Pattern of the figures of an evaluation.
        values: Pattern of each further placeholder that does not stand for any word.
    """
    known = {
        "source": ".+",  # the name in the data, slashes and spaces included
        "figure": figure,
        "name": rf"(?:{figure}(?:/low|/high)?|no_answer|unique|solved|dropped_prompts)",
        **values,
    }
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda m: known.get(m[1], r"[\w.]+"), re.escape(name)) + r"\Z")


_PATTERNS = {pattern_of(name) for name in METRICS}


def check_names(names: Sequence[str]) -> None:
    """Raise unless every metric is documented.

    Raises:
        KeyError: A metric is not in `METRICS`. The message names all such metrics.
    """
    unknown = [name for name in names if not any(pattern.match(name) for pattern in _PATTERNS)]
    if unknown:
        raise KeyError(f"metrics that are missing in maxpo.tracking.metrics.METRICS: {unknown}")


def markdown() -> str:
    """Return the text of METRICS.md."""
    rows = "\n".join(f"| `{name}` | {meaning} | {unit} |" for name, (meaning, unit) in METRICS.items())
    return (
        "# Metrics\n\nEvery metric that a run writes to `metrics.jsonl` and TensorBoard. Generated by "
        "`python -m maxpo.tracking.metrics > METRICS.md`. A test compares this page with the code.\n\n"
        f"| name | meaning | unit |\n| --- | --- | --- |\n{rows}\n"
    )


if __name__ == "__main__":
    print(markdown(), end="")
