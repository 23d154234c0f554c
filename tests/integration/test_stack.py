"""Real Ray, vLLM and DeepSpeed: two engines, two learner ranks under ZeRO-3."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from maxpo.errors import RemoteError, RunError
from maxpo.loop.selection import assess
from maxpo.types import Group, Mix, StepBatch, WeightManifest
from maxpo.weights.checksum import bytes_digest
from tests.integration.conftest import Stack


def tokens(groups: list[Group]) -> list[list[tuple[int, ...]]]:
    return [[tuple(c.token_ids.tolist()) for c in g.completions] for g in groups]


def plain_logprobs(model: Any, group: Group, temperature: float) -> list[list[float]]:
    """Log-probability of each sampled token from a plain forward pass."""
    out = []
    start = len(group.prompt.token_ids)
    for c in group.completions:
        ids = torch.tensor([[*group.prompt.token_ids, *c.token_ids.tolist()]])
        with torch.no_grad():
            logp = (model(input_ids=ids).logits[0].float() / temperature).log_softmax(-1)
        out.append([float(logp[start + t - 1, token]) for t, token in enumerate(c.token_ids)])
    return out


def update(stack: Stack, step: int) -> dict[str, float]:
    scored = stack.rollouts.score(stack.rollouts.generate(stack.train[:24], 16, f"update{step}"))
    assessed = assess(scored, stack.config.algorithm, [stack.config.algorithm.k] * 24, Mix())
    kept = [group for group in assessed if group.has_signal]
    batch = StepBatch(
        groups=tuple(group.scored for group in kept),
        signal=tuple(group.signal for group in kept),
        sampled_sequences=24 * 16,
        sampled_tokens=sum(len(c.token_ids) for g in scored for c in g.group.completions),
        step=step,
        k=(stack.config.algorithm.k,) * len(kept),
    )
    return dict(stack.learner.update(batch).metrics)


def one_update(stack: Stack, step: int) -> tuple[dict[str, float], WeightManifest]:
    return update(stack, step), stack.learner.publish(stack.rollouts.receivers())


def test_generation_is_refused_before_the_weights_have_a_version(stack: Stack) -> None:
    assert "rollout worker" in stack.before_weights
    assert "generation refused" in stack.before_weights


def test_samples_depend_on_prompt_draw_and_index_alone(stack: Stack) -> None:
    prompts = stack.train[:8]
    first = stack.rollouts.generate(prompts, 8, "a")
    assert [g.prompt for g in first] == prompts
    assert all(len(g.completions) == 8 for g in first)
    assert tokens(stack.rollouts.generate(prompts, 8, "a")) == tokens(first)
    # Alone, in another order, on whichever worker, and in a larger group: the same samples.
    assert tokens(stack.rollouts.generate(prompts[3:4], 8, "a")) == tokens(first)[3:4]
    assert tokens(stack.rollouts.generate(prompts[::-1], 8, "a"))[::-1] == tokens(first)
    assert [row[:8] for row in tokens(stack.rollouts.generate(prompts[:2], 12, "a"))] == tokens(first)[:2]
    assert tokens(stack.rollouts.generate(prompts, 8, "b")) != tokens(first)
    assert any(len(set(row)) > 1 for row in tokens(first))


def test_sampler_logprobs_are_those_of_the_sampled_distribution(stack: Stack, tmp_path: Path) -> None:
    stack.learner.export(tmp_path / "now")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "now", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "now")
    for group in stack.rollouts.generate(stack.train[:4], 4, "logprobs"):
        for mine, c in zip(plain_logprobs(model, group, 0.7), group.completions, strict=True):
            assert list(c.logprobs) == pytest.approx(mine, abs=2e-4)
            assert c.text == tokenizer.decode(
                c.token_ids.tolist(), skip_special_tokens=True
            )  # it has no special ones inside


def test_new_weights_reach_every_engine_and_change_what_it_says(stack: Stack, tmp_path: Path) -> None:
    """Three updates at a large learning rate; after each, greedy vLLM equals greedy transformers (tied embeddings)."""
    before = tokens(stack.rollouts.generate(stack.train[:8], 8, "change"))
    for step in range(1, 4):
        metrics, manifest = one_update(stack, step)
        stack.rollouts.confirm(manifest)
        folder = tmp_path / f"v{manifest.version}"
        stack.learner.export(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        exported = dict(model.named_parameters())
        assert set(exported) == set(manifest.names)
        for name, digest in zip(manifest.names, manifest.digests, strict=True):
            assert int(bytes_digest(exported[name].detach())) == digest, name
        for receiver in stack.rollouts.receivers():
            for prompt in stack.held_out[:4]:
                group: Any = ray.get(
                    receiver.actor.generate.remote(f"g{prompt.prompt_id}", prompt, 1, 0, 60.0, greedy=True)
                )
                ids = torch.tensor([prompt.token_ids])
                want = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=26, do_sample=False)[
                    0, ids.shape[1] :
                ]
                assert list(group.completions[0].token_ids) == want.tolist(), (receiver.name, manifest.version)
                assert group.completions[0].min_weight_version == manifest.version
        # The sampler and the learner compute the same probabilities from the same weights.
        assert metrics["mismatch/logprob_abs"] < 1e-4
        assert metrics["mismatch/tis_mean"] == pytest.approx(1.0, abs=1e-3)
        assert metrics["advantage/group_sum_max"] < 1e-5
        assert metrics["train/optimizer_steps"] == 2 * step
        assert metrics["policy/reference_kl"] >= 0
    # The second optimizer step of a training step is off-policy, so its ratio has moved.
    assert metrics["policy/approx_kl"] > 0
    assert tokens(stack.rollouts.generate(stack.train[:8], 8, "change")) != before


def test_a_wrong_digest_or_version_stops_the_run_naming_worker_and_tensor(stack: Stack) -> None:
    manifest = stack.learner.publish(stack.rollouts.receivers())
    stack.rollouts.confirm(manifest)
    digests = list(manifest.digests)
    digests[5] += 1
    with pytest.raises(
        RemoteError, match=rf"rollout worker 0 .*1 of {len(digests)} tensors differ.*{manifest.names[5]}"
    ):
        stack.rollouts.confirm(replace(manifest, digests=tuple(digests)))
    with pytest.raises(RemoteError, match=rf"rollout worker 0 has weight version {manifest.version}"):
        stack.rollouts.confirm(replace(manifest, version=manifest.version + 1))
    with pytest.raises(RemoteError, match=r"tensors differ, first lm_head\.weight"):
        stack.rollouts.confirm(
            replace(manifest, names=(*manifest.names, "lm_head.weight"), digests=(*manifest.digests, 7))
        )


def test_new_engines_are_compared_with_the_learner(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts, learner = stack.rollouts, stack.learner
    manifest = learner.publish(rollouts.receivers(), again=True)
    assert rollouts.confirm(manifest) is None, "both were compared after their first sync"
    rollouts._compared.pop("rollout worker 1")
    sentence = rollouts.confirm(manifest)
    assert sentence is not None
    found = re.fullmatch(r"rollout worker 1: engine and learner agree to (.*) nats on (\d+) sampled tokens", sentence)
    assert found, sentence
    assert float(found[1]) < 1e-5
    assert int(found[2]) > 50

    def off(samples: Any) -> list[list[float]]:
        return [[x + 0.01 for x in values] for values in learner.logprobs(samples)]

    rollouts._compared.pop("rollout worker 0")
    monkeypatch.setattr(rollouts, "logprobs", off)
    with pytest.raises(RunError, match=r"rollout worker 0 does not compute what the learner computes.* 0\.01 nats"):
        rollouts.confirm(manifest)
    monkeypatch.undo()
    assert rollouts.confirm(manifest) is not None


def test_an_engine_with_other_weights_than_the_learner_is_found(stack: Stack) -> None:
    """The learner steps after the sync: digests and version of what was sent are right all the same."""
    rollouts = stack.rollouts
    manifest = stack.learner.publish(rollouts.receivers(), again=True)
    update(stack, 4)
    assert rollouts.confirm(manifest) is None, "digests cannot see it"
    rollouts._compared.clear()
    with pytest.raises(
        RunError, match=r"rollout worker \d does not compute what the learner computes.*\(at token \d+ after "
    ):
        rollouts.confirm(manifest)
    sentence = rollouts.confirm(stack.learner.publish(rollouts.receivers()))
    assert sentence is not None
    assert "rollout worker 0 and rollout worker 1: engine and learner agree to" in sentence


def test_engines_that_rest_wake_up_for_the_next_weights(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where they share GPUs with the learner; on CPU an engine only stops, and keeps its memory."""
    rollouts = stack.rollouts
    before = [c.token_ids.tolist() for g in rollouts.generate(stack.train[:2], 4, "rest") for c in g.completions]
    rollouts.rest()  # nothing where they share nothing
    rollouts.generate(stack.train[:1], 2, "awake")
    monkeypatch.setattr(rollouts, "_sleep_level", 1)
    actor = next(iter(rollouts._fleet.serving.values()))
    running = [actor.generate.remote(f"kept{i}", p, 48, i, 60.0) for i, p in enumerate(stack.train[:40])]
    time.sleep(0.3)
    rollouts.rest()
    asleep = actor.generate.remote("asleep", stack.train[0], 2, 0, 60.0)
    assert not ray.wait([asleep], timeout=2.0)[0]
    rollouts.confirm(manifest := stack.learner.publish(rollouts.receivers()))
    assert len(ray.get(asleep, timeout=60).completions) == 2
    kept = [c for group in ray.get(running, timeout=60) for c in group.completions]
    assert {c.finish_reason for c in kept} <= {"stop", "length"}, "what was in flight goes on"
    assert {c.max_weight_version for c in kept} <= {manifest.version - 1, manifest.version}
    assert any(c.min_weight_version < c.max_weight_version for c in kept)
    after = [c.token_ids.tolist() for g in rollouts.generate(stack.train[:2], 4, "rest") for c in g.completions]
    assert after == before


def test_groups_sampled_during_a_sync_say_which_weights_made_them(stack: Stack) -> None:
    """A sync pauses what is running; its samples carry the versions before and after."""
    actor = stack.rollouts.receivers()[0].actor
    running = [actor.generate.remote(f"span{i}", p, 48, i, 60.0) for i, p in enumerate(stack.train[:40])]
    manifest = stack.learner.publish(stack.rollouts.receivers())
    groups = ray.get(running)
    spans = {(c.min_weight_version, c.max_weight_version) for g in groups for c in g.completions}
    assert spans <= {(v, w) for v in (manifest.version - 1, manifest.version) for w in (v, manifest.version)}
    assert max(w for _, w in spans) == manifest.version
    assert min(v for v, _ in spans) == manifest.version - 1


def test_no_full_garbage_collection_looks_at_what_libraries_have_made(stack: Stack) -> None:
    running: Any = stack.system
    actors = [*running.rollouts._fleet.started.values(), *running.learner._actors.values()]
    frozen = ray.get([actor.__ray_call__.remote(lambda _: gc.get_freeze_count()) for actor in actors])
    assert len(frozen) == 4
    assert min(*frozen, gc.get_freeze_count()) > 100_000


def test_verifiers_score_what_the_engines_say(stack: Stack) -> None:
    scored = stack.rollouts.score(stack.rollouts.generate(stack.train[:16], 16, "score"))
    rewards = [r for g in scored for r in g.rewards]
    assert set(rewards) == {0.0, 1.0}
    assert all(all(g.valid) for g in scored)


def test_a_worker_that_is_late_is_named(stack: Stack) -> None:
    actors = {r.name: r.actor for r in stack.rollouts.receivers()}
    from maxpo.runtime.ray_calls import wait_for

    refs = {name: actor.generate.remote(f"late-{name}", stack.train[0], 2, 0, 60.0) for name, actor in actors.items()}
    with pytest.raises(RemoteError, match="rollout worker 0, rollout worker 1 did not finish sampling within 0 s"):
        wait_for(refs, timeout_s=0.0, doing="sampling")
    assert set(wait_for(refs, timeout_s=60.0, doing="sampling")) == set(refs)


def test_every_port_of_the_run_is_on_loopback(stack: Stack) -> None:
    """Ray's daemons, engines, learner ranks and rendezvous: nothing that another machine could reach."""
    processes = psutil.Process().children(recursive=True)
    listening = {
        (process.name(), connection.laddr.ip)
        for process in processes
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert any("ray" in name for name, _ in listening)
    assert {(name, ip) for name, ip in listening if ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")} == set()


INTRUDER = """
import json, os, socket, sys
worked = []
for path in json.load(sys.stdin):
    tries = {
        "list": lambda: os.listdir(path),
        "read": lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK),
        "write": lambda: os.open(path, os.O_WRONLY | os.O_NONBLOCK),
        "create": lambda: os.open(path + "/new", os.O_WRONLY | os.O_CREAT),
        "rename": lambda: os.rename(path, path + ".mine"),
        "connect": lambda: socket.socket(socket.AF_UNIX).connect(path),
    }
    for name, attempt in tries.items():
        try:
            attempt()
            worked.append((name, path))
        except OSError:
            pass
print(json.dumps(worked))
"""


def test_another_user_of_the_machine_gets_nowhere(stack: Stack) -> None:
    """Sockets and files of Ray and of the engines, tried one by one."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    mine = [
        f for f in Path(tempfile.gettempdir()).glob("maxpo-ray-*/owner") if f.read_text().endswith(f" {os.getpid()}")
    ]
    paths = [str(path) for owner in mine for path in [owner.parent, *owner.parent.rglob("*")]]
    assert any("plasma_store" in path for path in paths)
    assert any("/vllm/" in path for path in paths)
    # The interpreter may be where the other user cannot go, so any will do that is there for all.
    python = next(p for p in ("/usr/bin/python3", "/usr/local/bin/python3", sys.executable) if Path(p).exists())
    done = subprocess.run(
        [python, "-I", "-c", INTRUDER],
        input=json.dumps(paths),
        capture_output=True,
        text=True,
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_no_engine_leaves_a_socket_in_the_temporary_folder(stack: Stack) -> None:
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    paths = {str(c.laddr) for process in family for c in process.net_connections(kind="unix") if c.laddr}
    outside = {path for path in paths if path.startswith(tempfile.gettempdir()) and "/maxpo-ray-" not in path}
    assert outside == set()
