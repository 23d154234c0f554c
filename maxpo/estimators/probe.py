"""What each estimator's gradient looks like on real groups, from the gradients of the samples' log-probabilities.

A prompt has J groups of N samples, and a sample i has its score s_i = grad log pi(y_i), in full or as a random sketch
that keeps inner products on average. The gradient of a group under an estimator is g = (1/n) sum_i A_i s_i. All figures
are quadratic in the scores. Within a prompt they follow from the inner products of its samples. Between prompts they
need the mean gradient of each prompt as a vector.

With two groups of a prompt, <g_1, g_2> is an unbiased estimate of |E[g | prompt]|^2, so the variance splits without
bias into that within prompts and that between prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maxpo.estimators.arguments import GroupK
from maxpo.estimators.mixing import DEFAULTS, Parameters, estimator
from maxpo.estimators.order_statistics import include_one, rank
from maxpo.plugins import short_name
from maxpo.types import ScoredGroup

FLOOR = "floor"
"""Row of the unbiased estimator with the best baseline of its prompt, which no real estimator knows."""
SIZED = ("maxpo", "pkpo_loo_minus_one")
"""Estimators whose second moment is measured for other group sizes too."""
SUBSETS = 16
"""Number of random groups of each other size for each prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """What to measure."""

    prompts: tuple[tuple[ScoredGroup, ...], ...]
    """The groups of each prompt: one or two, equally many for all prompts, all of one size."""
    names: tuple[str, ...]
    """Estimators, which accept these rewards and this K. `SIZED` must be among them."""
    ks: tuple[int, ...]
    """K of each prompt."""
    parameters: Parameters = DEFAULTS
    sizes: tuple[int, ...] = ()
    """Further group sizes, from K + 1 to the number of samples of a prompt."""
    seed: int = 0
    """Seed of the groups of other sizes, and of the projection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePart:
    """What one rank has measured."""

    figures: tuple[PromptFigures, ...]
    dimensions: int
    """Length of the vectors that stand for gradients."""
    parameters: int
    """Number of trained parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptScores:
    """The samples of a prompt and their scores."""

    prompt_id: str
    scores: Float[Tensor, "J N D"]
    """0 where a sample is not valid."""
    rewards: Float[Tensor, "J N"]
    valid: Bool[Tensor, "J N"]
    successes: Bool[Tensor, "J N"]
    tokens: Int[Tensor, "J N"]
    """Number of loss tokens."""


@dataclass(slots=True, kw_only=True)
class PromptFigures:
    """Figures of one prompt. Lists have an entry for each estimator, and for `FLOOR` at the end if J is 2."""

    prompt_id: str
    second: list[float]
    """Mean over the groups of |g|^2."""
    cross: list[float]
    """<g_1, g_2>. Empty if J is 1."""
    own: list[float]
    """|mean of the groups' g|^2."""
    toward: list[float]
    """Inner product of the mean of the groups' g with the sum of these means over all prompts."""
    along: float
    """<g, d> with g of `pkpo_loo_minus_one` and d the g of `maxpo` minus it, mean over the groups."""
    apart: float
    """|d|^2, mean over the groups."""
    failure: float | None
    """Mean |s|^2 of failures around their mean. None: the prompt has not two successes and two failures."""
    success: float | None
    """The same of successes."""
    by_size: dict[int, list[float]]
    """Mean |g|^2 of `SIZED` for groups of other sizes."""
    trained: list[float]
    """Number of tokens of samples with a non-zero advantage."""
    tokens: float
    """Number of tokens of valid samples."""


def measure_prompt(prompt: PromptScores, k: int, request: ProbeRequest) -> tuple[PromptFigures, Float[Tensor, "E D"]]:
    """Return the figures of a prompt, with `toward` empty, and the mean gradient of each estimator."""
    names, parameters = request.names, request.parameters
    groups, n, _ = prompt.scores.shape
    valid = prompt.valid
    count = valid.sum(1).clamp(min=1)
    advantages = [estimator(name, parameters)(prompt.rewards, k, valid) for name in names]
    flat = prompt.scores.flatten(0, 1)
    inner = (flat @ flat.T).double()
    if groups == 2:
        advantages.append(_best_baseline(prompt, k, parameters, inner.diagonal().view(groups, n)))
    a = torch.stack(advantages)
    weights = a.double() / count[:, None]  # [E, J, N]
    blocks = inner.view(groups, n, groups, n)
    second = torch.einsum("ejn,jnjm,ejm->ej", weights, blocks, weights).mean(1)
    means = torch.einsum("ejn,jnd->ed", weights.to(flat.dtype), prompt.scores) / groups
    together = weights.flatten(1) / groups
    apart = weights[names.index("maxpo")] - weights[names.index("pkpo_loo_minus_one")]
    along = torch.einsum("jn,jnjm,jm->j", weights[names.index("pkpo_loo_minus_one")], blocks, apart)
    failure, success = _energies(prompt, inner)
    tokens = torch.where(valid, prompt.tokens, 0).double()
    return PromptFigures(
        prompt_id=prompt.prompt_id,
        second=_list(second),
        cross=_list(torch.einsum("en,nm,em->e", weights[:, 0], blocks[0, :, 1], weights[:, 1])) if groups == 2 else [],
        own=_list(torch.einsum("en,nm,em->e", together, inner, together)),
        toward=[],
        along=float(along.mean()),
        apart=float(torch.einsum("jn,jnjm,jm->j", apart, blocks, apart).mean()),
        failure=failure,
        success=success,
        by_size=_other_sizes(prompt, inner, k, request),
        trained=_list((tokens * (a.abs() > 1e-10)).sum((1, 2))),
        tokens=float(tokens.sum()),
    ), means


def add_sum(figures: Sequence[PromptFigures], means: Sequence[Float[Tensor, "E D"]], total: Tensor) -> None:
    """Fill in `toward`.

    Args:
        figures: Figures of prompts.
        means: Their mean gradients.
        total: [E, D] sum of the mean gradients over all prompts, those of other ranks included.
    """
    for own, mean in zip(figures, means, strict=True):
        own.toward = _list((mean * total).sum(1))


def _best_baseline(
    prompt: PromptScores, k: int, parameters: Parameters, energy: Float[Tensor, "J N"]
) -> Float[Tensor, "J N"]:
    """Return K (in_i - b_i), with b_i the mean of in(r) weighted by |s|^2 over all other samples of the prompt.

    in(r) is `in_i` for a sample i of reward r. Nothing in b_i depends on sample i, so this is unbiased.
    """
    groups, n = prompt.rewards.shape
    everyone = groups * n
    advantages = torch.zeros_like(prompt.rewards)
    usable = torch.where(prompt.valid, energy, 0.0).flatten()
    for j in range(groups):
        # [samples of the prompt, places of the group, N]: the group with another reward at one place.
        rewards = prompt.rewards[j].expand(everyone, n, n).clone()
        rewards.diagonal(dim1=1, dim2=2).copy_(prompt.rewards.flatten()[:, None].expand(-1, n))
        valid = (prompt.valid[j] | torch.eye(n, dtype=torch.bool)).expand_as(rewards)
        included = include_one(rank(rewards.flatten(0, 1), valid.flatten(0, 1)), k, parameters.objective)
        included = included.view(rewards.shape).diagonal(dim1=1, dim2=2)  # [samples of the prompt, N]
        own = torch.arange(n) + j * n
        weight = usable[:, None].expand(-1, n).clone()
        weight[own, torch.arange(n)] = 0.0
        baseline = (weight * included).sum(0) / weight.sum(0).clamp(min=1e-300)
        mine = included[own, torch.arange(n)]
        advantages[j] = torch.where(prompt.valid[j], k * (mine - baseline), 0.0)
    return advantages


def _energies(prompt: PromptScores, inner: Float[Tensor, "M M"]) -> tuple[float | None, float | None]:
    """Return the mean |s|^2 around the class mean, of failures and of successes."""
    found: list[float] = []
    for wanted in (False, True):
        members = (prompt.valid & (prompt.successes == wanted)).flatten()
        if (count := int(members.sum())) < 2:
            return None, None
        own = inner[members][:, members]
        found.append(float((own.diagonal().sum() - own.sum() / count) / (count - 1)))
    return found[0], found[1]


def _other_sizes(
    prompt: PromptScores, inner: Float[Tensor, "M M"], k: int, request: ProbeRequest
) -> dict[int, list[float]]:
    """Return the mean |g|^2 of `SIZED` over random groups of other sizes, drawn without replacement."""
    rewards, usable = prompt.rewards.flatten(), prompt.valid.flatten().nonzero()[:, 0]
    generator = torch.Generator().manual_seed(request.seed)
    found: dict[int, list[float]] = {}
    for size in request.sizes:
        if size <= len(usable):
            order = torch.rand(SUBSETS, len(usable), generator=generator).argsort(1)[:, :size]
            members = usable[order]
            products = inner[members[:, :, None], members[:, None, :]]
            weights = [estimator(name, request.parameters)(rewards[members], k) / size for name in SIZED]
            found[size] = [float(torch.einsum("sn,snm,sm->s", w, products, w).mean()) for w in weights]
    return found


def _list(values: Tensor) -> list[float]:
    return [float(value) for value in values]


def refusals(
    names: Sequence[str], rewards: Float[Tensor, "G N"], k: GroupK, valid: Bool[Tensor, "G N"], parameters: Parameters
) -> Mapping[str, str]:
    """Return the estimators that do not accept these rewards or this K, with the reason."""
    found: dict[str, str] = {}
    for name in names:
        try:
            estimator(name, parameters)(rewards, k, valid)
        except ValueError as error:
            found[name] = str(error)
    return found


def probe_metrics(figures: Sequence[PromptFigures], names: Sequence[str]) -> dict[str, float]:
    """Return the metrics of a probe during a training, of prompts with one group each."""
    along, apart = (sum(getattr(f, key) for f in figures) / len(figures) for key in ("along", "apart"))
    second = {name: sum(f.second[e] for f in figures) for e, name in enumerate(names)}
    metrics = {"probe/groups": float(len(figures)), "probe/along": along, "probe/apart": apart}
    if reference := second["maxpo"]:
        metrics |= {f"probe/second_moment/{short_name(name)}": value / reference for name, value in second.items()}
    energies = [(f.failure, f.success) for f in figures if f.failure is not None and f.success is not None]
    if success := sum(own for _, own in energies):
        metrics["probe/kappa"] = sum(own for own, _ in energies) / success
    return metrics
