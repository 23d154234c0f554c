"""One case of `benchmarks/control_plane.py`: the fakes, and the measurements of the driver."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.cluster.ray_environment import secure_own_cluster
from maxpo.types import Completion, Group, Prompt

if TYPE_CHECKING:
    from maxpo.config import Config

PROMPT_TOKENS = 32
WARM_UP_GROUPS = 64
STAGES = ("generate", "update", "workers", "rest")
"""generate: sampling and scoring, which are served together; update: the batch into the object store; workers: the
questions to every worker in each step, before and after a sync and for the metrics; rest: the loop itself (advantages,
metrics, log)."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Settings of one measurement."""

    workers: int = 64
    groups: int = 2000
    """Number of groups in a step."""
    group_size: int = 16
    tokens: int = 16
    """Number of tokens in a completion."""
    rate: float = 0.0
    """Number of groups per second that all workers together return; 0: as fast as possible."""
    steps: int = 1
    hosts: int = 4
    """Number of actors that answer for the workers."""
    concurrent: int = 256
    """Value of `rollout.max_concurrent_sequences` for a worker."""
    tensors: int = 300
    """Number of tensors of the model. Every worker reports one checksum for each after a sync."""

    @property
    def capacity(self) -> int:
        """Return the highest number of groups at the workers."""
        return min(self.groups, self.workers * (-(-self.concurrent // self.group_size) + 1))


class Host:
    """An actor that answers for many workers, at the lowest possible cost."""

    def __init__(self, case: Case) -> None:
        draw = random.Random(0)
        self._mean_s = case.capacity / case.rate if case.rate else 0.0
        self._draw = draw
        self._digests = {f"model.layers.{i}.weight": i for i in range(case.tensors)}
        self._version = 0
        self._answered: Counter[int] = Counter()
        self._completions = tuple(
            Completion(
                text="word " * case.tokens + ("yes" if i % 4 == 0 else "no"),
                token_ids=np.array([draw.randrange(150_000) for _ in range(case.tokens)], np.int32),
                logprobs=np.array([-draw.random() for _ in range(case.tokens)], np.float32),
                finish_reason="stop",
                versions=((0, 0),),
            )
            for i in range(case.group_size)
        )

    async def generate(
        self, worker: int, rollout_id: str, prompt: Prompt, n: int, seed: int, limit_s: float, *, greedy: bool = False
    ) -> Group:
        if self._mean_s:
            await asyncio.sleep(self._draw.uniform(0.0, 2 * self._mean_s))
        self._answered[worker] += 1
        return Group(prompt=prompt, completions=self._completions)

    async def start(self, worker: int, version: int | None) -> int:
        return 0

    async def set_version(self, version: int) -> None:
        self._version = version
        self._completions = tuple(replace(c, versions=((version, 0),)) for c in self._completions)

    async def weights_state(self, worker: int) -> tuple[int, list[dict[str, int]]]:
        return self._version, [self._digests]

    async def sign_of_life(self, worker: int) -> None:
        pass

    async def memory_mib(self, worker: int) -> float:
        return 0.0

    async def answered(self) -> Counter[int]:
        """Return the groups of each worker since the last call."""
        found, self._answered = self._answered, Counter()
        return found


class Worker:
    """A stand-in for the actor handle of a worker."""

    def __init__(self, host: Any, number: int) -> None:
        self.host, self.number = host, number

    def __getattr__(self, method: str) -> Any:
        return _Method(getattr(self.host, method), self.number)


@dataclass(frozen=True, slots=True)
class _Method:
    method: Any
    number: int

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        return self.method.remote(self.number, *args, **kwargs)


class Meter:
    """Seconds of each stage of each step: CPU of this process, CPU of its main thread, wall time."""

    def __init__(self) -> None:
        self.steps: list[dict[str, list[float]]] = []
        self.begin_step()

    @staticmethod
    def _now() -> list[float]:
        return [time.process_time(), time.thread_time(), time.perf_counter()]

    def begin_step(self) -> None:
        self._step = {stage: [0.0] * 3 for stage in STAGES}
        self._begun = self._now()

    def end_step(self) -> None:
        step, everything = self._step, [now - begun for now, begun in zip(self._now(), self._begun, strict=True)]
        step["rest"] = [total - sum(step[stage][i] for stage in STAGES) for i, total in enumerate(everything)]
        self.steps.append(step | {"all": everything})

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        begun = self._now()
        yield
        for i, now in enumerate(self._now()):
            self._step[name][i] += now - begun[i]


def verify(prompt: str, text: str, reference: str) -> float:
    """Return a reward without any work."""
    return float(text.endswith(reference))


def pool_type(meter: Meter) -> Any:
    """Return a class of pools whose calls are measured. It imports Ray, so not before `secure_own_cluster`."""
    from maxpo.types import Receiver, WeightManifest
    from rollout.pool import RolloutPool

    class Pool(RolloutPool):
        """The real pool with fake workers."""

        def __init__(self, config: Config, hosts: Sequence[Any], workers: int) -> None:
            made = "rollout.pool._actor_factory"
            with patch(made, lambda *_: lambda i: Worker(hosts[i % len(hosts)], i)):
                super().__init__(replace(config, rollout=replace(config.rollout, workers=workers)), "cpu", "gloo", dict)

        def serve(self, until: Callable[[], bool], *, learner_busy: bool = False) -> None:
            with meter.stage("generate"):
                super().serve(until, learner_busy=learner_busy)

        def receivers(self) -> list[Receiver]:
            with meter.stage("workers"):
                return super().receivers()

        def confirm(self, manifest: WeightManifest) -> None:
            with meter.stage("workers"):
                super().confirm(manifest)

        def metrics(self) -> dict[str, float]:
            with meter.stage("workers"):
                return super().metrics()

    return Pool


def learner_type(meter: Meter) -> Any:
    """Return a class of learners whose updates are measured."""
    import ray

    from maxpo.types import Receiver, StepBatch, StepResult, WeightManifest

    class Ended:
        """An update that has ended."""

        def done(self) -> bool:
            return True

        def result(self) -> StepResult:
            return StepResult(metrics={"train/tokens": 1.0, "time/update_s": 1.0, "train/refused_steps": 0.0})

    class Learner:
        """A learner that trains nothing."""

        version = -1

        def __init__(self, hosts: Sequence[Any], tensors: int) -> None:
            self._hosts, self._names = hosts, tuple(f"model.layers.{i}.weight" for i in range(tensors))

        def begin_update(self, batch: StepBatch, wake: Callable[[], None]) -> Ended:
            with meter.stage("update"):
                ray.put(batch)  # as `learner.group.LearnerGroup` does
            return Ended()

        def publish(self, receivers: Sequence[Receiver], *, again: bool = False) -> WeightManifest:
            self.version += not again
            ray.get([host.set_version.remote(self.version) for host in self._hosts])
            n = len(self._names)
            return WeightManifest(
                version=self.version,
                names=self._names,
                dtypes=("",) * n,
                shapes=((),) * n,
                digests=tuple(range(n)),
                received={r.name: ray.get(r.actor.weights_state.remote()) for r in receivers},
            )

        def save(self, folder: Path, *, policy: bool) -> Callable[[], None]:
            raise NotImplementedError

        def load(self, folder: Path, version: int) -> None:
            raise NotImplementedError

        def export(self, target: Path) -> None:
            raise NotImplementedError

    return Learner


def settings(case: Case, folder: str) -> Config:
    """Return the settings of the step that warms up."""
    from maxpo.config import AlgorithmConfig, Config, EvalConfig, RayConfig, RewardConfig, RolloutConfig, RunConfig

    return Config(
        run=RunConfig(name="control_plane", dir=folder, steps=1),
        algorithm=AlgorithmConfig(group_size=case.group_size, prompts_per_step=min(WARM_UP_GROUPS, case.groups)),
        rollout=RolloutConfig(max_new_tokens=case.tokens, max_concurrent_sequences=case.concurrent),
        reward=RewardConfig(verifier="benchmarks.driver_case:verify", max_chars=10**9),
        eval=EvalConfig(at_start=False, at_end=False),
        ray=RayConfig(num_cpus=2, object_store_mib=4096),
    )


def made_up_prompts(count: int) -> list[Prompt]:
    """Return prompts of the same length whose answer is yes."""
    ids = tuple(range(PROMPT_TOKENS))
    return [
        Prompt(prompt_id=f"prompt-{i}", text="word " * PROMPT_TOKENS, token_ids=ids, reference="yes", source="none")
        for i in range(count)
    ]


def measure(case: Case) -> dict[str, Any]:
    """Run a case in this process."""
    secure_own_cluster()
    import ray

    from launch.cluster.ray_cluster import cluster
    from maxpo.data.order import PromptStream
    from maxpo.loop.observer import Observer
    from maxpo.loop.train import Trainer
    from maxpo.tracking.run_log import RunLog

    meter = Meter()

    class Watch(Observer):
        """An observer that records times and memory at the end of each step."""

        def __init__(self) -> None:
            self.rss_mib: list[float] = []
            self.metrics: list[dict[str, float]] = []

        def step_done(self, step: int, metrics: dict[str, float]) -> None:
            meter.end_step()
            self.rss_mib.append(memory_mib("VmRSS"))
            self.metrics.append(metrics)

    def begin_step() -> bool:
        meter.begin_step()
        return False

    with tempfile.TemporaryDirectory(prefix="maxpo-bench-") as folder:
        config, prompts = settings(case, folder), made_up_prompts(case.groups)
        with cluster(config, Path(folder) / "log"):
            remote: Any = ray.remote(Host)
            options = {"num_cpus": 0.01, "max_concurrency": 100_000}
            hosts = [remote.options(**options).remote(case) for _ in range(case.hosts)]
            pool = pool_type(meter)(config, hosts, case.workers)
            try:
                pool.begin_start()
                pool.finish_start()
                learner = learner_type(meter)(hosts, case.tensors)
                log = RunLog(Path(folder), tensorboard=False, save_rollouts=1)
                Trainer(config, PromptStream(prompts, 0), [], pool, learner, log, Observer()).run()
                ray.get([host.answered.remote() for host in hosts])
                before = memory_mib("VmRSS")
                config = replace(
                    config,
                    run=replace(config.run, steps=case.steps),
                    algorithm=replace(config.algorithm, prompts_per_step=case.groups),
                )
                watch = Watch()
                Trainer(config, PromptStream(prompts, 0), [], pool, learner, log, watch, begin_step).run()
                answered = sum(ray.get([host.answered.remote() for host in hosts]), Counter[int]())
                group = ray.get(pool._fleet.serving["rollout worker 0"].generate.remote("", prompts[0], 1, 0, 60.0))
            finally:
                pool._rewards.shutdown()  # otherwise this process would wait for them for ever
    assert answered.total() == case.groups * case.steps
    assert all(metrics["groups/kept"] == case.groups for metrics in watch.metrics)
    stages = {
        kind: {stage: median(step[stage][i] for step in meter.steps) for stage in (*STAGES, "all")}
        for i, kind in enumerate(("cpu_s", "main_thread_s", "wall_s"))
    }
    return {
        "case": asdict(case) | {"capacity": case.capacity},
        "bytes_per_group": len(pickle.dumps(group, 5)),
        "groups_of_a_worker": [min(answered.values()), max(answered.values()), len(answered)],
        "memory_mib": {"before": before, "after_each_step": watch.rss_mib, "peak": memory_mib("VmHWM")},
        **stages,
    }


def memory_mib(field: str) -> float:
    """Return a memory figure of this process from Linux: VmRSS is the current one, VmHWM the highest so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def run(case: Case) -> dict[str, Any]:
    """Run a case in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, case).result()
