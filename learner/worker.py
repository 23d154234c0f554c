"""One learner rank as a Ray actor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from maxpo.batches.samples import Sample
from maxpo.config import Config
from maxpo.estimators.probe import ProbePart, ProbeRequest
from maxpo.runtime.background import Background
from maxpo.runtime.heap import freeze_heap
from maxpo.runtime.network import use_interface
from maxpo.runtime.output import write_output_to
from maxpo.runtime.waits import print_stacks_on_signal
from maxpo.types import Receiver, StepBatch, WeightManifest

if TYPE_CHECKING:  # deepspeed must be imported after the environment is set, torch after the device is chosen
    import torch
    from torch import Tensor

    from learner.model.policy import Layout
    from learner.state.files import Extra
    from learner.state.policy_folder import Shard
    from learner.state.training_state import TrainingState
    from learner.update.reference import Forward
    from learner.update.updater import Updater
    from learner.weight_sync.sender import WeightSender


class LearnerWorker:
    """One DeepSpeed rank. `start`, `update`, `publish`, `save`, `load` and `export` are collective over the ranks."""

    def __init__(self, config: Config, rank: int, device: str, sync_backend: str, output: Path | None = None) -> None:
        """Remember the configuration, and write all output to the file `output`. `start` does the work."""
        write_output_to(output)
        print_stacks_on_signal()
        self._config, self._rank, self._device_type, self._backend = config, rank, device, sync_backend
        self._host = use_interface(ray.util.get_node_ip_address(), config.cluster.interface)

    def serve_rendezvous(self) -> tuple[str, int]:
        """Open the rendezvous of all ranks on this worker (rank 0), and return its host and port."""
        from maxpo.weights.rendezvous import serve_store

        self._store, port = serve_store(self._host, self._config.run.start_timeout_s)
        return self._host, port

    def start(self, host: str, port: int) -> tuple[int, int]:
        """Join the ranks, load the model and start DeepSpeed.

        Args:
            host: address of rank 0, from `serve_rendezvous`.
            port: port of the rendezvous there.

        Returns:
            The process id and the number of parameters.
        """
        device = self._claim_device()
        self._join_ranks(host, port, device)
        # Imported here: deepspeed reads the environment that `_join_ranks` sets when it is imported.
        from learner.deepspeed_engine import TrainEngine
        from learner.model.loading import load_policy
        from learner.model.sequence_parallel import SequenceGroup
        from learner.update.reference import reference_policy

        sequence = SequenceGroup.of(self._config.learner)
        loaded = load_policy(self._config, sequence, self._choose_layout(device))
        self._policy, self._base = loaded.policy, loaded.base
        self._engine = TrainEngine(self._policy, self._config.learner, device)
        self._updater = self._new_updater(reference_policy(self._config, self._engine, sequence))
        self._sender = self._new_sender()
        freeze_heap()
        return os.getpid(), loaded.parameters

    def _claim_device(self) -> torch.device:
        """Return the device of this rank, ready for use and seeded."""
        import torch

        cuda = self._device_type == "cuda"
        device = torch.device("cuda", 0) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        else:
            torch.set_num_threads(self._config.learner.cpu_threads)
            # The gradients of a prompt that several completions share are added up. Threads would add in any order.
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        torch.manual_seed(self._config.run.seed)
        return device

    def _join_ranks(self, host: str, port: int, device: torch.device) -> None:
        """Make the process group of all ranks. Collective."""
        import torch.distributed as dist

        from maxpo.weights.rendezvous import join_store

        learner = self._config.learner
        # DeepSpeed insists on these variables. The rendezvous itself goes through the store.
        os.environ.update(RANK=str(self._rank), WORLD_SIZE=str(learner.ranks), LOCAL_RANK="0")
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=self._store if self._rank == 0 else join_store(host, port, self._config.run.start_timeout_s),
            rank=self._rank,
            world_size=learner.ranks,
            timeout=timedelta(seconds=learner.step_timeout_s),
        )

    def _choose_layout(self, device: torch.device) -> Layout:
        """Return the layout of rows that the self-test finds right here, the same on all ranks. Collective."""
        import torch
        import torch.distributed as dist

        from learner.model.loading import self_test
        from learner.model.policy import LAYOUTS

        report = self_test(self._config, getattr(torch, self._config.learner.dtype), device)
        mine = 0 if report is None else LAYOUTS.index(report.layout)
        chosen = torch.tensor(mine, device=device)
        dist.all_reduce(chosen, dist.ReduceOp.MAX)
        return LAYOUTS[int(chosen)]

    def _new_updater(self, reference: Forward | None) -> Updater:
        from learner.update.updater import Updater

        algorithm, rollout = self._config.algorithm, self._config.rollout
        return Updater(
            self._engine,
            reference,
            self._config.learner,
            algorithm,
            rank=self._rank,
            temperature=rollout.temperature,
            aggregation_constant=algorithm.aggregation_constant or rollout.max_new_tokens,
            total_steps=self._config.run.steps,
            max_staleness=self._config.pipeline.max_staleness,
        )

    def _new_sender(self) -> WeightSender:
        import torch

        from learner.weight_sync.sender import WeightSender

        return WeightSender(
            self._engine,
            backend=self._backend,
            dtype=getattr(torch, self._config.rollout.dtype),
            bucket_bytes=self._config.sync.bucket_mib << 20,
            timeout_s=self._config.sync.timeout_s,
            rank=self._rank,
            host=self._host,
        )

    def ping(self) -> None:
        """Return at once. A dead process raises, a busy process does not answer."""

    def update(self, batch: StepBatch) -> dict[str, float]:
        """Run one training step and return its metrics, equal on all ranks except for the memory of this process."""
        import psutil

        metrics = self._probe_step(batch) | self._updater.update(batch)
        if self._backend == "ipc":
            import torch

            torch.cuda.empty_cache()  # for the engine that wakes up on this GPU
        return metrics | {"memory/learner_rss_mib": psutil.Process().memory_info().rss / 2**20}

    def logprobs(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Return the policy's log-probabilities of the samples' tokens, equal on all ranks, see `score_samples`."""
        from learner.update.scoring import score_samples

        return score_samples(self._engine, samples, self._config.learner, self._config.rollout.temperature)

    def _probe_step(self, batch: StepBatch) -> dict[str, float]:
        """Return the metrics of the probe of this step, none if none is due."""
        every = self._config.algorithm.probe_every
        if not every or batch.step % every:
            return {}
        from learner.update.probe import probe_step

        return probe_step(self._engine, batch, self._config.algorithm, **self._forward_args())

    def _forward_args(self) -> dict[str, Any]:
        return {"temperature": self._config.rollout.temperature, "chunk": self._config.learner.logprob_chunk}

    def probe(self, request: ProbeRequest) -> ProbePart:
        """Measure the gradients of estimators on scored groups. Changes nothing. Each rank returns its prompts."""
        from learner.update.probe import probe

        return probe(self._engine, request, self._config.algorithm, **self._forward_args())

    def publish(self, version: int, receivers: Sequence[Receiver]) -> WeightManifest | None:
        """Send the weights to the engines as `version`. Rank 0 returns the manifest."""
        return self._sender.publish(version, receivers)

    def save(self, folder: str, policy: bool) -> None:
        """Copy everything that an update changes, and start to write the copy in the background.

        Args:
            folder: folder of the checkpoint. `saved` returns True when the files are there.
            policy: also write the policy.
        """
        from learner.state.policy_folder import adapter_of, policy_shards

        extra: Extra = {"optimizer_steps": self._updater.optimizer_steps, "base": self._base}
        if self._engine.loss_scale is not None:
            extra["loss_scale"] = self._engine.loss_scale.state()
        write_state = self._training_state().copy(extra)
        shards = list(policy_shards(self._engine, rank=self._rank)) if policy else []
        adapter = adapter_of(self._engine) if policy and self._config.learner.lora.rank else None

        def write() -> None:
            write_state(Path(folder, "learner"))
            if shards and self._rank == 0:
                self._write_policy(Path(folder, "policy"), shards, adapter)

        self._writing = Background(write)

    def saved(self) -> bool:
        """Return True if the files of the last `save` are written. Raise the error of writing, if any."""
        if not self._writing.done:
            return False
        self._writing.result()
        return True

    def load(self, folder: str) -> None:
        """Continue from the files that `save` wrote, maybe with other ranks or another ZeRO stage.

        Raises:
            InputError: the adapter was trained on another base.
        """
        from learner.model.lora import check_base

        extra = self._training_state().load(Path(folder))
        if self._base is not None:
            check_base(extra.get("base"), self._base, self._config.model.path)
        self._updater.optimizer_steps = extra["optimizer_steps"]
        if self._engine.loss_scale is not None and "loss_scale" in extra:
            self._engine.loss_scale.restore(extra["loss_scale"])

    def _training_state(self) -> TrainingState:
        from learner.model.parameters import trained_parameters
        from learner.state.training_state import TrainingState

        return TrainingState(self._engine, trained_parameters(self._engine.module))

    def export(self, target: str) -> None:
        """Write the policy as a Hugging Face folder."""
        from learner.state.policy_folder import adapter_of, policy_shards

        adapter = adapter_of(self._engine) if self._config.learner.lora.rank else None
        shards = policy_shards(self._engine, rank=self._rank)
        if self._rank == 0:
            self._write_policy(Path(target), shards, adapter)
        else:
            for _ in shards:
                pass

    def _write_policy(self, target: Path, shards: Iterable[Shard], adapter: dict[str, Tensor] | None) -> None:
        from learner.state.policy_folder import write_policy

        write_policy(self._policy.lm, self._config.model.path, target, self._config.learner.lora, shards, adapter)
