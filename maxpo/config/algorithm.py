"""Settings of the section `algorithm`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class AlgorithmConfig:
    """What is optimised: the estimator, the loss, the groups."""

    advantage: str = "maxpo"
    """Advantage estimator, one of `maxpo.estimators.advantages.ADVANTAGES`."""
    objective: str = "max"
    """What `maxpo` optimises, a statistic of K samples: max, min, mean, median, top_m:M, bottom_m:M, quantile:Q or
    lower_tail:Q (see `maxpo.estimators.objectives`). Other advantages know `max` only; `mix_with` and `shadow` follow
    it too."""
    k: int = 4
    """K of max@K, 1 <= k < group_size (`pkpo` and `pkpo_loo_minus_one`: k <= group_size). `rloo`, `grpo`, `dr_grpo`,
    `maxrl` and `top1_gap` do not use it, nor does a k_schedule other than constant; the metric reward/max@K does."""
    k_schedule: Literal["constant", "linear", "stepwise", "adaptive"] = "constant"
    """How K changes: not; in a straight line over the run; at given steps; or for each prompt by its pass rate p as
    observed in earlier steps, K = ceil(1 / p) - 1, where max@K pulls hardest on the prompt (a success is a reward of
    1 or more)."""
    k_values: list[int] = field(default_factory=list[int])
    """linear: first and last K. stepwise: each K in turn. adaptive: smallest and largest K. No effect with constant."""
    k_steps: list[int] = field(default_factory=list[int])
    """stepwise: the steps, from 1, with which the second and each further K begins. No effect otherwise."""
    mix_with: str | None = None
    """Second estimator, mixed in as (1 - w) x advantage + w x mix_with; null: none."""
    mix_weight: list[float] = field(default_factory=lambda: [0.5])
    """w: one number, or two for a straight line from the first step to the last. No effect without `mix_with`."""
    shadow: list[str] = field(default_factory=list[str])
    """Estimators to log beside the one in use, on the same groups; they change nothing."""
    group_size: int = 16
    """Completions per prompt, N."""
    prompts_per_step: int = 32
    """Groups sampled in one step, G."""
    minibatches: int = 1
    """Optimizer steps per training step; the groups are split evenly over them."""
    loss: Literal["ppo_clip", "policy_gradient"] = "ppo_clip"
    """Policy loss, one of `maxpo.losses.policy.LOSSES`."""
    clip_low: float = 0.2
    """Lower clip bound: the ratio is clipped at 1 - clip_low. No effect with `policy_gradient`."""
    clip_high: float = 0.28
    """Upper clip bound: the ratio is clipped at 1 + clip_high. No effect with `policy_gradient`."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "constant"
    """How per-token losses become one number: over all tokens, over each sequence and then over sequences,
    or the sum over tokens divided by `aggregation_constant` and averaged over sequences."""
    aggregation_constant: float | None = None
    """Tokens that the sum over a sequence is divided by with `aggregation: constant`; null:
    `rollout.max_new_tokens`."""
    kl_coef: float = 0.0
    """Weight of the KL to the frozen starting model; at 0, or with `learner.lora`, no reference model is loaded."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL. No effect while `kl_coef` is 0."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    tis_cap: float | None = 2.0
    """Truncated importance sampling: cap of the ratio of learner to sampler probability of each token; null
    turns it off."""
    drop_zero_signal: bool = True
    """Drop groups whose advantages are all zero before the learner and, where `kl_coef` and `entropy_coef` are 0,
    single sequences of zero advantage in it. Both are counted, and since the loss still divides by everything that
    was sampled, this never changes the policy gradient."""
    refill_rounds: int = 0
    """How many times per step new prompts may be sampled in place of dropped groups."""
