"""Real gradients of the real learner, against plain PyTorch written from the definitions."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from learner.model.self_test import randomize
from maxpo.batches.packing import plan_microbatches
from maxpo.batches.samples import valid_samples
from maxpo.config import AlgorithmConfig
from maxpo.estimators.advantages import ADVANTAGES, maxpo
from maxpo.estimators.probe import ProbeRequest
from maxpo.loop.selection import assess
from maxpo.types import Group, Mix, Prompt, ScoredGroup, StepBatch
from tests.fakes import completion
from tests.integration.conftest import MODEL, Learned, RankResult, Rounds
from tests.integration.learner_ranks import job

KS = (1, 2, 3, 2, 1)


def with_signal(batch: StepBatch, estimator: str) -> StepBatch:
    """The batch with the samples that this estimator learns from, as the loop selects them."""
    groups = assess(batch.groups, AlgorithmConfig(advantage=estimator), list(batch.k), Mix())
    return replace(batch, signal=tuple(group.signal for group in groups))


def make_batch(seed: int, groups: int = 5, n: int = 4, k: tuple[int, ...] = (), mix: Mix | None = None) -> StepBatch:
    """Groups of very different lengths; one sample is invalid."""
    rng = random.Random(seed)
    made: list[ScoredGroup] = []
    for g in range(groups):
        ids = tuple(rng.randint(4, 40) for _ in range(rng.randint(1, 12)))
        completions = []
        for _ in range(n):
            length = rng.choice([1, 2, 5, 9, 17, 30])
            completions.append(
                completion(
                    token_ids=[rng.randint(4, 40) for _ in range(length)],
                    logprobs=[-rng.uniform(0.5, 4.0) for _ in range(length)],
                    loss_mask=[rng.random() < 0.9 for _ in range(length)],
                )
            )
        valid = tuple(not (g == 1 and i == 2) for i in range(n))
        made.append(
            ScoredGroup(
                group=Group(
                    prompt=Prompt(prompt_id=str(g), text="", token_ids=ids, reference=None, source=""),
                    completions=tuple(completions),
                ),
                rewards=tuple(rng.uniform(-1, 1) for _ in range(n)),
                successes=(False,) * n,
                valid=valid,
                outcomes=tuple("ok" if v else "timeout" for v in valid),
            )
        )
    sequences = [c for s in made for c, ok in zip(s.group.completions, s.valid, strict=True) if ok]
    return StepBatch(
        groups=tuple(made),
        signal=tuple(s.valid for s in made),
        # More than what is in the groups: a dropped group counts in the denominators.
        sampled_sequences=len(sequences) + 4,
        sampled_tokens=sum(c.loss_tokens for c in sequences) + 11,
        step=1,
        k=k or (2,) * groups,
        mix=mix or Mix(),
    )


def plain_loss(
    model: Any,
    batch: StepBatch,
    aggregation: str,
    *,
    kl: float = 0.0,
    entropy_coef: float = 0.0,
    temperature: float = 1.0,
    tis_cap: float | None = 2.0,
    estimator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda r, valid: ADVANTAGES["maxpo"](r, 2, valid),
) -> torch.Tensor:
    """The loss of a first optimizer step: one sequence at a time, no packing, no chunks, no shared code."""
    rewards = torch.tensor([g.rewards for g in batch.groups])
    valid = torch.tensor([g.valid for g in batch.groups])
    advantages = estimator(rewards, valid)
    total = torch.zeros(())
    for g, group in enumerate(batch.groups):
        prompt = list(group.group.prompt.token_ids)
        for i, c in enumerate(group.group.completions):
            if not group.valid[i]:
                continue
            ids = torch.tensor([prompt + c.token_ids.tolist()])
            logp = (model(input_ids=ids).logits[0] / temperature).log_softmax(-1)
            per_sequence = torch.zeros(())
            for t, token in enumerate(c.token_ids):
                if c.loss_mask is not None and not c.loss_mask[t]:
                    continue
                dist = logp[len(prompt) + t - 1]
                new = dist[token]
                weight = 1.0
                if tis_cap is not None:
                    weight = min(math.exp(float(new.detach()) - float(c.logprobs[t])), tis_cap)
                loss = -advantages[g, i] * (new - new.detach()).exp() * weight
                loss = loss + kl * (torch.exp(new.detach() - new) - 1 + (new - new.detach()))
                loss = loss + entropy_coef * (dist.exp() * dist).sum()
                per_sequence = per_sequence + loss
            tokens = max(1, c.loss_tokens)
            total = (
                total
                + {
                    "token_mean": per_sequence / batch.sampled_tokens,
                    "sequence_mean": per_sequence / tokens / batch.sampled_sequences,
                    "constant": per_sequence / 20.0 / batch.sampled_sequences,
                }[aggregation]
            )
    return total


def plain_gradients(batch: StepBatch, aggregation: str, path: str = MODEL, **kwargs: Any) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    plain_loss(model, batch, aggregation, **kwargs).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: float = 2e-5) -> None:
    assert set(got) == set(want)
    scale = max(float(w.abs().max()) for w in want.values())
    assert scale > 0
    for name in want:
        assert float((got[name] - want[name]).abs().max()) <= tolerance * scale, name


NAMES = ("maxpo", "pkpo_loo_minus_one", "interpolated", "grpo")
SIX = make_batch(3, groups=6).groups
PROBE = ProbeRequest(prompts=(SIX[:2], SIX[2:4], SIX[4:]), names=NAMES, ks=(2,) * 3)
"""Three prompts with two groups each."""


def plain_scores(group: ScoredGroup, model: Any, *, mean: bool) -> torch.Tensor:
    """[N, P] gradients of the log-probabilities of the loss tokens, their sum or mean; 0 for the invalid sample."""
    parameters = [p for _, p in model.named_parameters()]
    rows = []
    prompt = list(group.group.prompt.token_ids)
    for c, ok in zip(group.group.completions, group.valid, strict=True):
        logp = model(input_ids=torch.tensor([prompt + c.token_ids.tolist()])).logits[0].log_softmax(-1)
        mask = [True] * len(c.token_ids) if c.loss_mask is None else c.loss_mask.tolist()
        chosen = [logp[len(prompt) + t - 1, token] for t, token in enumerate(c.token_ids) if mask[t]]
        total = torch.stack(chosen).sum() / (len(chosen) if mean else 1) if chosen else logp.sum() * 0
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)]) * ok)
    return torch.stack(rows).double()


def plain_probe(*, mean: bool) -> list[dict[str, torch.Tensor]]:
    """The gradient of each group under each estimator, by definition."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager")
    found = []
    for pair in PROBE.prompts:
        gradients: dict[str, list[torch.Tensor]] = {name: [] for name in NAMES}
        for group in pair:
            scores = plain_scores(group, model, mean=mean)
            rewards, valid = torch.tensor([group.rewards], dtype=torch.float64), torch.tensor([group.valid])
            for name in NAMES:
                gradients[name].append(ADVANTAGES[name](rewards, 2, valid)[0] @ scores / sum(group.valid))
        found.append({name: torch.stack(both) for name, both in gradients.items()})
    return found


def lopsided() -> StepBatch:
    """Three sequences of 40, 30 and 30 tokens: two ranks with a budget of 45 need two rows, and one runs out."""
    lengths = (35, 25, 25)
    completions = tuple(
        completion(token_ids=[4 + (i * 7 + t) % 36 for t in range(n)], logprobs=[-2.0] * n)
        for i, n in enumerate(lengths)
    )
    prompt = Prompt(prompt_id="p", text="", token_ids=(5, 6, 7, 8, 9), reference=None, source="")
    group = ScoredGroup(
        group=Group(prompt=prompt, completions=completions),
        rewards=(1.0, 0.0, 0.5),
        successes=(True, False, False),
        valid=(True,) * 3,
        outcomes=("ok",) * 3,
    )
    return StepBatch(
        groups=(group,), signal=(group.valid,), sampled_sequences=3, sampled_tokens=sum(lengths), step=1, k=(2,)
    )


def write_untied(folder: Path) -> str:
    """Write the demo model with a head of its own. Returns the folder."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, tie_word_embeddings=False)
    generator = torch.Generator().manual_seed(0)
    model.lm_head.weight = torch.nn.Parameter(0.1 * torch.randn(model.lm_head.weight.shape, generator=generator))
    model.save_pretrained(folder)
    return str(folder)


def write_with_state(folder: Path) -> str:
    """Write a tiny model with short convolutions. Returns the folder."""
    config = AutoConfig.for_model(
        "lfm2",
        vocab_size=41,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention", "conv"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomize(model)
    model.save_pretrained(folder)
    return str(folder)


def one_rank_jobs() -> list[dict[str, Any]]:
    batch = make_batch(0)
    positive = with_signal(batch, "pkpo_loo_minus_one")
    return [
        job([batch], aggregation="constant"),  # one row
        job([batch], aggregation="constant", budget=45, logprob_chunk=3),  # nearly a row per sequence
        job([batch], aggregation="token_mean", budget=100, stage=1),
        job([batch], aggregation="sequence_mean", budget=100, stage=0),
        job([batch], aggregation="constant", loss="policy_gradient", tis_cap=None, stage=3, budget=100),
        job([batch], aggregation="token_mean", entropy_coef=0.3, kl_coef=0.5) | {"temperature": 0.7},
        job([batch, make_batch(1), make_batch(2)], aggregation="constant"),
        job([batch], aggregation="constant", gradient_checkpointing=True),
        job([positive], aggregation="constant", advantage="pkpo_loo_minus_one"),
        job([positive], aggregation="constant", advantage="pkpo_loo_minus_one", drop_zero_signal=False),
        job([positive], aggregation="constant", advantage="pkpo_loo_minus_one", kl_coef=0.5),
        job([positive], aggregation="constant", advantage="pkpo_loo_minus_one", entropy_coef=0.3),
        job([make_batch(0, k=KS, mix=Mix(weight=0.25))], aggregation="constant", mix_with="rloo", objective="min"),
        job([batch], aggregation="constant", budget=150) | {"layout": "sdpa"},
        job([batch], aggregation="constant", stage=1) | {"probe": PROBE},
        job([batch], aggregation="sequence_mean") | {"probe": PROBE, "project": 4096},
    ]


def two_rank_jobs(folder: Path) -> list[dict[str, Any]]:
    batch = make_batch(0)
    positive = with_signal(batch, "pkpo_loo_minus_one")
    untied = write_untied(folder / "untied")
    # Nothing stays gathered, as in a large model: each use of a parameter is a collective of its own.
    no_cache = folder / "no_cache.json"
    zero = {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 0}
    no_cache.write_text(json.dumps({"zero_optimization": zero}))
    jobs = [job([batch], aggregation="constant", budget=100, stage=stage) for stage in (0, 1, 2, 3)]
    jobs.append(job([lopsided()], aggregation="constant", budget=45))
    jobs.append(job([batch, make_batch(1), make_batch(2)], aggregation="constant", budget=100, minibatches=1))
    for stage in (2, 3):
        settings = {"deepspeed": str(no_cache)} if stage == 3 else {}
        # A chunk of 31 makes the ranks use the head differently often.
        jobs.append(
            job([lopsided()], aggregation="constant", budget=45, stage=stage, logprob_chunk=31, **settings)
            | {"model": untied}
        )
    for drop in (True, False):
        settings = {"advantage": "pkpo_loo_minus_one", "minibatches": 2, "drop_zero_signal": drop}
        jobs.append(job([positive], aggregation="constant", budget=60, stage=3, **settings))
    # Both ranks share each row. 45 tokens make rows of odd lengths and ones that a sequence is cut in.
    shared = {"aggregation": "constant", "sequence_parallel": 2}
    jobs += [
        job([batch], **shared),
        job([batch], **shared, budget=45, stage=3, gradient_checkpointing=True, logprob_chunk=3),
        job([batch], aggregation="token_mean", entropy_coef=0.3, kl_coef=0.5, sequence_parallel=2)
        | {"temperature": 0.7},
        job([positive], **shared, advantage="pkpo_loo_minus_one", minibatches=2, budget=60),
    ]
    # One sequence a row: a model with a state over tokens, and one without whose ranks have different numbers of rows.
    padded = job([batch], aggregation="constant", budget=90, stage=3, gradient_checkpointing=True, logprob_chunk=3)
    jobs.append(padded | {"layout": "sdpa", "model": write_with_state(folder / "state")})
    jobs.append(job([lopsided()], aggregation="constant", budget=45, stage=3) | {"layout": "eager"})
    jobs.append(job([batch], aggregation="constant", budget=100) | {"probe": PROBE})
    return jobs


def rank_jobs(folder: Path) -> Rounds:
    one, two = one_rank_jobs(), two_rank_jobs(folder)
    return {f"one {i}": job for i, job in enumerate(one)}, {f"two {i}": job for i, job in enumerate(two)}, {}


@pytest.fixture(scope="module")
def one_rank(learned: Learned) -> list[RankResult]:
    return [result for name, result in learned.results.items() if name.startswith("one ")]


@pytest.fixture(scope="module")
def two_ranks(learned: Learned) -> list[RankResult]:
    return [result for name, result in learned.results.items() if name.startswith("two ")]


@pytest.fixture(scope="module")
def untied(learned: Learned) -> str:
    return str(learned.folder / "untied")


def test_packed_gradients_equal_one_sequence_at_a_time(one_rank: Any) -> None:
    batch = make_batch(0)
    for index, aggregation in ((0, "constant"), (1, "constant"), (2, "token_mean"), (3, "sequence_mean")):
        assert_same(one_rank[index][0], plain_gradients(batch, aggregation))
    assert one_rank[0][2][0]["train/microbatches"] == 1
    assert one_rank[1][2][0]["train/microbatches"] >= 8


def test_sequences_of_zero_advantage_are_left_out_and_change_no_gradient(one_rank: Any) -> None:
    want = plain_gradients(
        make_batch(0), "constant", estimator=lambda r, valid: ADVANTAGES["pkpo_loo_minus_one"](r, 2, valid)
    )
    assert_same(one_rank[8][0], want)
    assert_same(one_rank[9][0], want)
    skipping, everything = one_rank[8][2][0], one_rank[9][2][0]
    # The lowest reward of each of five groups adds nothing to the best of two.
    assert (skipping["train/sequences"], everything["train/sequences"]) == (14.0, 19.0)
    assert skipping["train/zero_advantage"] == pytest.approx(5 / 19)
    assert 0 < skipping["train/tokens"] < everything["train/tokens"]
    # They do count for the KL and the entropy.
    assert [one_rank[i][2][0]["train/sequences"] for i in (10, 11)] == [19.0, 19.0]


def test_a_probe_measures_the_gradient_of_every_sample_and_changes_nothing(one_rank: Any, two_ranks: Any) -> None:
    want = plain_probe(mean=False)
    total = {name: sum(prompt[name].mean(0) for prompt in want) for name in NAMES}
    alone = one_rank[14][2][0]["probe"]
    # Ranks take turns with the prompts.
    shared = two_ranks[16][2][0]["probe"]
    for found in (alone, [shared[0], shared[2], shared[1]]):
        for figures, prompt in zip(found, want, strict=True):
            for e, name in enumerate(NAMES):
                g = prompt[name]
                assert figures["second"][e] == pytest.approx(float(g.square().sum(1).mean()), rel=1e-3)
                scale = float(g.square().sum(1).mean())
                assert figures["cross"][e] == pytest.approx(float(g[0] @ g[1]), abs=1e-3 * scale)
                assert figures["toward"][e] == pytest.approx(float(g.mean(0) @ total[name]), abs=1e-3 * scale)
    assert_same(one_rank[14][0], one_rank[0][0])
    assert_same(two_ranks[16][0], one_rank[0][0])


def test_a_projected_probe_is_near_and_knows_the_mean_of_a_sequence(one_rank: Any) -> None:
    for figures, prompt in zip(one_rank[15][2][0]["probe"], plain_probe(mean=True), strict=True):
        assert figures["dimensions"] == 4096
        for e, name in enumerate(NAMES):
            g = prompt[name]
            scale = float(g.square().sum(1).mean())
            assert figures["second"][e] == pytest.approx(scale, rel=0.15)
            assert figures["cross"][e] == pytest.approx(float(g[0] @ g[1]), abs=0.15 * scale)


def test_left_out_sequences_on_two_ranks_with_minibatches(two_ranks: Any) -> None:
    skipping, everything = two_ranks[8], two_ranks[9]
    assert_same(skipping[0], everything[0])
    assert (skipping[2][0]["train/sequences"], everything[2][0]["train/sequences"]) == (14.0, 19.0)
    assert skipping[2][0]["train/optimizer_steps"] == 2.0


def test_k_of_each_group_mixing_and_objective_reach_the_loss(one_rank: Any) -> None:
    def estimator(r: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        rows = [maxpo(r[g : g + 1], k, valid[g : g + 1], objective="min") for g, k in enumerate(KS)]
        return 0.75 * torch.cat(rows) + 0.25 * ADVANTAGES["rloo"](r, 1, valid)

    assert_same(one_rank[12][0], plain_gradients(make_batch(0), "constant", estimator=estimator))


def test_ranks_that_share_rows_give_the_same_gradient(one_rank: Any, two_ranks: Any) -> None:
    whole, cut, entropy_and_kl, minibatches = two_ranks[10:14]
    assert_same(whole[0], one_rank[0][0])
    assert_same(cut[0], one_rank[0][0])
    assert_same(entropy_and_kl[0], one_rank[5][0])
    assert_same(minibatches[0], two_ranks[9][0])
    for got, want in ((whole, one_rank[0]), (cut, one_rank[1]), (entropy_and_kl, one_rank[5])):
        names = ("train/loss", "train/grad_norm", "train/tokens", "policy/entropy", "mismatch/kl")
        assert [got[2][0][name] for name in names] == pytest.approx([want[2][0][name] for name in names], rel=1e-4)
    # One row of all tokens, of which each rank has half; with a row each there would be two.
    assert (whole[2][0]["train/microbatches"], cut[2][0]["train/microbatches"] >= 8) == (1.0, True)


def test_plain_policy_gradient_without_importance_weights(one_rank: Any) -> None:
    assert_same(one_rank[4][0], plain_gradients(make_batch(0), "constant", tis_cap=None))


def test_entropy_bonus_kl_and_temperature(one_rank: Any) -> None:
    # At the reference itself the gradient of the KL is zero; what is left are the loss and the entropy.
    want = plain_gradients(make_batch(0), "token_mean", entropy_coef=0.3, kl=0.5, temperature=0.7)
    assert_same(one_rank[5][0], want)
    assert one_rank[5][2][0]["policy/reference_kl"] == pytest.approx(0.0, abs=1e-6)


def test_two_ranks_and_every_zero_stage_give_the_gradient_of_one_rank(one_rank: Any, two_ranks: Any) -> None:
    for stage in range(4):
        assert_same(two_ranks[stage][0], one_rank[0][0])
        for name in ("train/loss", "train/grad_norm", "train/tokens", "policy/entropy"):
            assert two_ranks[stage][2][0][name] == pytest.approx(one_rank[0][2][0][name], rel=1e-4), (stage, name)


def test_a_row_that_runs_out_on_one_rank_changes_nothing(two_ranks: Any, untied: str) -> None:
    lengths = [len(s.token_ids) for s in valid_samples(lopsided().groups)]
    plan = plan_microbatches(lengths, 45, 2)
    assert any(not row for rows in plan for row in rows)
    assert_same(two_ranks[4][0], plain_gradients(lopsided(), "constant"))
    # The same with a head of its own, under ZeRO-2, and under ZeRO-3 with nothing kept gathered.
    want = plain_gradients(lopsided(), "constant", path=untied)
    assert "lm_head.weight" in want
    assert_same(two_ranks[6][0], want)
    assert_same(two_ranks[7][0], want)


def test_gradient_checkpointing_runs_each_layer_twice_for_the_same_gradient(one_rank: Any) -> None:
    assert_same(one_rank[7][0], one_rank[0][0])
    assert one_rank[0][2][0]["forward_calls"] == 1
    assert one_rank[7][2][0]["forward_calls"] == 2


def test_padded_rows_give_the_same_gradient_on_one_rank_and_two(
    one_rank: Any, two_ranks: Any, learned: Learned
) -> None:
    assert_same(one_rank[13][0], one_rank[0][0])
    assert one_rank[13][2][0]["train/microbatches"] > one_rank[0][2][0]["train/microbatches"]
    with_state, lopsided_rows = two_ranks[14:16]
    assert_same(with_state[0], plain_gradients(make_batch(0), "constant", path=str(learned.folder / "state")))
    assert_same(lopsided_rows[0], plain_gradients(lopsided(), "constant"))


def test_steps_equal_plain_adamw_with_clipping(one_rank: Any, two_ranks: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    norms = []
    for seed in range(3):
        optimizer.zero_grad()
        plain_loss(model, make_batch(seed), "constant").backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
    want = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    for weights, metrics in (one_rank[6][1:], two_ranks[5][1:]):
        got = {name: weights[name] - before[name] for name in want}
        difference = sum(float((got[n] - want[n]).square().sum()) for n in want)
        assert difference <= 1e-4 * sum(float(w.square().sum()) for w in want.values())
        assert [m["train/grad_norm"] for m in metrics] == pytest.approx(norms, rel=1e-3)
