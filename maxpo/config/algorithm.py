"""Settings of the section `algorithm`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from maxpo.config.ranges import BILLION, COUNT, COUNT_OR_NONE, FACTOR, FACTOR_OR_NONE, Must, between, each

BOUNDS = Must(
    lambda v: not v or (len(v) == 2 and 0 <= v[0] < 1 < v[1]), "Must be [] or two numbers, around 1 and at least 0."
)


@dataclass(kw_only=True)
class AlgorithmConfig:
    """Estimator, loss and groups."""

    advantage: str = "maxpo"
    """Advantage estimator, one of `maxpo.estimators.advantages.ADVANTAGES`, or your own function (`docs/extend.md`)."""
    objective: str = "max"
    """Objective of `maxpo`, `pkpo_loo_minus_one` and `interpolated`, a statistic of K samples: max, min, mean, median,
    top_m:M, bottom_m:M, quantile:Q or lower_tail:Q (see `maxpo.estimators.objectives`). `mix_with` and `shadow` use the
    same objective. The other estimators support `max` only."""
    lam: str = "v"
    """Weight of `maxpo` in the estimator `interpolated`: (1 - lam) pkpo_loo_minus_one + lam maxpo. A number; v: (n - K)
    / (n - 1) in a group of n valid samples; adaptive: the weight of lowest variance in the probes of earlier steps
    (`probe_every`), v before the first. No effect with other estimators."""
    kappa: Annotated[float, FACTOR] = 3.0
    """Squared score of a failure divided by that of a success, for the estimator `kappa`: `maxpo probe` measures it. No
    effect with other estimators."""
    k: Annotated[int, COUNT] = 4
    """K of max@K, 1 <= k < group_size (`pkpo`, `pkpo_loo_minus_one`, `interpolated` and `kappa`: k <= group_size). The
    estimators `rloo`, `grpo`, `dr_grpo`, `maxrl` and `top1_gap` do not use K, and a k_schedule other than constant
    replaces this value. The metric reward/max@K always uses this value."""
    k_schedule: Literal["constant", "linear", "stepwise", "adaptive"] = "constant"
    """Schedule of K. constant: always `k`. linear: a straight line over the run. stepwise: changes at given steps.
    adaptive: K of each prompt from the pass rate p observed in earlier steps, K = ceil(1 / p) - 1, where the gradient
    of max@K is largest for the prompt (`docs/verifiers.md` defines success)."""
    k_values: Annotated[list[int], each(1, BILLION)] = field(default_factory=list[int])
    """linear: first and last K. stepwise: all K in order. adaptive: smallest and largest K. No effect with constant."""
    k_steps: Annotated[list[int], each(1, BILLION)] = field(default_factory=list[int])
    """stepwise: steps, counted from 1, at which the second and each further K begins. No effect otherwise."""
    mix_with: str | None = None
    """Second estimator, mixed in as (1 - w) x advantage + w x mix_with. null: none."""
    mix_weight: Annotated[
        list[float],
        Must(
            lambda v: len(v) in (1, 2) and all(0 <= w <= 1 for w in v),
            "Must be one or two numbers, each at least 0 and at most 1.",
        ),
    ] = field(default_factory=lambda: [0.5])
    """Weight w of `mix_with`: one number, or two for a straight line from the first step to the last. No effect without
    `mix_with`."""
    shadow: list[str] = field(default_factory=list[str])
    """Estimators to log on the same groups, beside the one in use. Shadow estimators do not change the training."""
    probe_every: Annotated[int, COUNT_OR_NONE] = 0
    """Steps between two probes of the estimators' gradients (`probe/*` metrics). 0: none. A probe takes one backward
    pass for each sample of `probe_groups` groups of the step, before the update. Needs learner.zero_stage 0 to 2."""
    probe_groups: Annotated[int, COUNT] = 8
    """Groups of a step that a probe measures. No effect while `probe_every` is 0."""
    group_size: Annotated[int, between(2, 10**5, "completions of a prompt are compared with each other")] = 16
    """Completions per prompt, N."""
    prompts_per_step: Annotated[int, COUNT] = 32
    """Groups sampled in one step, G."""
    minibatches: Annotated[int, COUNT] = 1
    """Optimizer steps per training step. The groups are split evenly among the optimizer steps."""
    loss: str = "ppo_clip"
    """Policy loss, one of `maxpo.losses.policy.LOSSES`, or your own function (`docs/extend.md`). They differ only for
    tokens whose probability has changed since the start of the step, that is, with `minibatches` above 1. gspo: with
    aggregation: sequence_mean, and clip bounds of about 4e-4."""
    clip_low: Annotated[float, Must(lambda v: 0 <= v < 1, "Must be at least 0 and below 1.")] = 0.2
    """Lower clip bound: the ratio is clipped at 1 - clip_low. No effect with `policy_gradient` and `sapo`."""
    clip_high: Annotated[float, FACTOR_OR_NONE] = 0.28
    """Upper clip bound: the ratio is clipped at 1 + clip_high. No effect with `policy_gradient` and `sapo`."""
    dual_clip: Annotated[float, Must(lambda v: 1 < v <= 1000, "Must be more than 1 and at most 1000.")] = 3.0
    """Bound of the ratio for negative advantages, with `loss: dual_clip` only."""
    sapo_temperatures: Annotated[
        list[float],
        Must(lambda v: len(v) == 2 and all(t > 0 for t in v), "Must be two numbers, each more than 0."),
    ] = field(default_factory=lambda: [1.0, 1.05])
    """Temperatures of the gate for positive and for other advantages, with `loss: sapo` only. Higher: a ratio far from
    1 has less gradient."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "constant"
    """Reduction of the per-token losses. token_mean: mean over all tokens. sequence_mean: mean over each sequence, then
    over sequences. constant: sum over each sequence divided by `aggregation_constant`, then mean over sequences."""
    aggregation_constant: Annotated[float | None, FACTOR] = None
    """Number of tokens that divides the sum over a sequence with `aggregation: constant`. null:
    `rollout.max_new_tokens`."""
    kl_coef: Annotated[float, FACTOR_OR_NONE] = 0.0
    """Weight of the KL to the frozen starting model. At 0, or with `learner.lora`, no reference model is loaded."""
    kl_estimator: Annotated[
        Literal["k1", "k2", "k3"],
        Must(
            lambda v: v != "k1",
            "Must be k2 or k3: in a loss the gradient of k1 is zero on average, so the KL would have no effect. "
            "Use k2, whose gradient is that of the KL.",
        ),
    ] = "k2"
    """Loss whose gradient pulls towards the starting model, with d the log-ratio of policy to starting model.
    k2 = d^2 / 2: the gradient of the KL of each token, without bias. k3 = exp(-d) - 1 + d: its value is an unbiased
    estimate of the KL, but its gradient is that of the reverse KL, which points elsewhere. k1 = d is refused: its value
    is unbiased, its gradient is zero on average. No effect while `kl_coef` is 0."""
    entropy_coef: Annotated[float, FACTOR_OR_NONE] = 0.0
    """Weight of the entropy bonus. With `entropy_target`, the weight of the first step."""
    entropy_target: Annotated[float | None, FACTOR] = None
    """Entropy in nats a token to which the weight of the bonus is steered: after each step the weight rises by
    `entropy_step` if `policy/entropy` is below the target, and else falls, from 0 to 1. null: the weight stays."""
    entropy_step: Annotated[float, Must(lambda v: 0 < v <= 1, "Must be more than 0 and at most 1.")] = 1e-4
    """Change of the weight of the entropy bonus in each step. No effect without `entropy_target`."""
    tis_cap: Annotated[float | None, FACTOR] = 2.0
    """Truncated importance sampling: upper bound of the ratio of learner to sampler probability of each token. null:
    off."""
    token_mask: Annotated[list[float], BOUNDS] = field(default_factory=list[float])
    """Two bounds of the ratio of learner to sampler probability, such as [0.5, 5]. Tokens outside have no policy loss
    (IcePop). []: off."""
    sequence_mask: Annotated[list[float], BOUNDS] = field(default_factory=list[float])
    """Two bounds of the ratio of learner to sampler probability of a sequence. Sequences outside have no policy loss.
    []: off."""
    sequence_mask_ratio: Literal["geometric", "product"] = "geometric"
    """Ratio of a sequence: geometric mean of the ratios of its tokens, or their product. No effect without
    `sequence_mask`."""
    length_buffer: Annotated[int | None, COUNT] = None
    """Tokens before `rollout.max_new_tokens` in which a completion loses reward: up to `length_penalty`, in
    proportion to the tokens used of the buffer (DAPO's soft overlong punishment). In training only. null: none."""
    length_penalty: Annotated[float, FACTOR] = 1.0
    """Reward that a completion of full length loses. No effect without `length_buffer`."""
    drop_zero_signal: bool = True
    """Drop groups whose advantages are all zero before the learner. Without `kl_coef` and entropy bonus, also drop
    single sequences of zero advantage in the learner. Dropped groups and sequences are counted. The loss still divides
    by everything that was sampled, so the policy gradient does not change."""
    truncated: Literal["train", "mask", "zero"] = "train"
    """Treatment in training of completions cut at `rollout.max_new_tokens` or `environment.max_turns`. Evaluations are
    not affected. train: like any other, with the reward that the verifier gives to the cut text. zero: the reward is
    0, so a cut completion is no success. mask: the completion counts as missing, in the estimator and in the loss, like
    one that could not be scored. With a centred estimator the gradient is then without bias that of the objective for
    the policy given that its completions end in time: being cut is neither punished nor rewarded. The overlong filter
    of DAPO masks the loss alone, so the remaining advantages do not add up to 0, which also rewards ending in time. A
    group with too few completions left is dropped."""
    refill_rounds: Annotated[int, COUNT_OR_NONE] = 0
    """Largest number of times per step that new prompts are sampled to replace dropped groups."""
