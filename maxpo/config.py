"""Every setting of a run, as dataclasses. Loading, checks and `explain` are in `configload.py`.

Each field has one docstring below it: meaning, unit, and when it has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

from maxpo.configcluster import ClusterConfig, LaunchConfig, RayConfig
from maxpo.configdata import DataConfig
from maxpo.configenvironment import EnvironmentConfig
from maxpo.configlora import LoraConfig
from maxpo.configreward import RewardConfig

ADVANTAGE_NAMES = (
    *("maxpo", "canonical", "pkpo", "pkpo_loo", "pkpo_loo_minus_one", "passk_training", "top1_gap"),
    *("rloo", "grpo", "dr_grpo", "maxrl"),
)
"""Keys of `maxpo.advantages.ADVANTAGES`, repeated here because importing that module imports torch."""
BEYOND_K = {"maxpo": 1, "canonical": 1, "pkpo": 0, "pkpo_loo": 1, "pkpo_loo_minus_one": 0, "passk_training": 1}
"""Those that use K -> how many samples more than K a group needs."""


@dataclass(kw_only=True)
class RunConfig:
    """Name, place, length and seed of a run."""

    name: str = MISSING
    """Name of the run; its files go to `dir/name`."""
    dir: str = "runs"
    """Folder that holds the run folders."""
    seed: int = 0
    """Seed of everything random: data order, sampling, evaluation."""
    steps: int = MISSING
    """Training steps. One step samples `algorithm.prompts_per_step` groups."""
    overwrite: bool = False
    """Replace an existing run folder of the same name; otherwise that is an error."""
    stall_timeout_s: float = 3600.0
    """Seconds without progress (a group, a stage of a step) after which the run stops and says who waits; 0: never."""


@dataclass(kw_only=True)
class ModelConfig:
    """The model to start from."""

    path: str = MISSING
    """Folder of a Hugging Face causal language model (config.json, safetensors, tokenizer)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model folder. Off: such a model is refused."""


@dataclass(kw_only=True)
class AlgorithmConfig:
    """What is optimised: the estimator, the loss, the groups."""

    advantage: str = "maxpo"
    """Advantage estimator, one of `maxpo.advantages.ADVANTAGES`."""
    objective: str = "max"
    """What `maxpo` optimises, a statistic of K samples: max, min, mean, median, top_m:M, bottom_m:M, quantile:Q or
    lower_tail:Q (see `maxpo.objective`). Other advantages know `max` only; `mix_with` and `shadow` follow it too."""
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
    """Policy loss, one of `maxpo.losses.LOSSES`."""
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


@dataclass(kw_only=True)
class RolloutConfig:
    """The vLLM engines that sample."""

    workers: int = 1
    """Number of vLLM engines, each in its own Ray actor."""
    tensor_parallel_size: int = 1
    """GPUs per engine (on CPU: processes per engine)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the engines run; auto: CUDA where the installed vLLM and the machine have it."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of the engines' weights and activations."""
    max_new_tokens: int = MISSING
    """Longest completion in tokens."""
    temperature: float = 1.0
    """Sampling temperature; the log-probabilities of sampler and learner include it."""
    top_p: float = 1.0
    """Nucleus sampling. Only 1.0 is accepted in training: the learner's ratio is over the full distribution."""
    top_k: int = 0
    """Top-k sampling; 0 is off. Only 0 is accepted in training, for the same reason."""
    max_concurrent_sequences: int = 256
    """Sequences that one engine decodes at once; the pool keeps each engine supplied with about this many."""
    gpu_memory_utilization: float = 0.85
    """Share of GPU memory that an engine may take. No effect on CPU."""
    cpu_kv_cache_gib: int = 1
    """KV cache of an engine on CPU, GiB. No effect on GPU."""
    enforce_eager: bool = False
    """Do not capture CUDA graphs. No effect on CPU, which is always eager."""
    start_timeout_s: float = 600.0
    """Seconds that an engine may take to start."""
    generate_timeout_s: float = 600.0
    """Seconds that one group may take to generate."""
    max_restarts: int = 10
    """Lost workers within `restart_window_s` that are replaced; with one more the run stops."""
    restart_window_s: float = 600.0
    """Seconds within which lost workers are counted."""
    health_interval_s: float = 10.0
    """Seconds between two questions, while groups are sampled, whether an engine still answers."""
    health_timeout_s: float = 60.0
    """Seconds without an answer after which a worker counts as lost; engines answer between two forward passes."""
    health_grace_s: float = 60.0
    """Seconds after its start in which a worker is not asked."""
    engine_args: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further vLLM engine arguments, passed as they are."""


@dataclass(kw_only=True)
class LearnerConfig:
    """The DeepSpeed ranks that train."""

    ranks: int = 1
    """Learner processes, one GPU each (on CPU: one process each)."""
    sequence_parallel: int = 1
    """Ranks that share each packed row (DeepSpeed Ulysses), for long completions: activations of `token_budget` tokens
    are spread over them. Must divide `ranks` and the model's attention heads, those of keys and values too."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the learner runs; auto: CUDA where torch has it."""
    cpu_threads: int = 1
    """Threads per learner process on CPU."""
    zero_stage: int = 2
    """DeepSpeed ZeRO stage, 0 to 3."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of forward and backward; master weights and optimizer state are float32 either way."""
    lr: float = MISSING
    """Peak learning rate of AdamW."""
    warmup_steps: int = 5
    """Optimizer steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up; linear and cosine end at 0 with the last step."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """AdamW's betas, two numbers."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """An optimizer step whose loss or gradient is not finite is not taken: stop the run there, or skip it and go on."""
    token_budget: int = 16384
    """Most tokens of one packed microbatch. A longer single sequence is an error before the start."""
    logprob_chunk: int = 2048
    """Tokens whose logits are held at once; memory grows with chunk x vocabulary."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    deepspeed: str | None = None
    """JSON file with further DeepSpeed settings (offload, buckets), merged below the ones of this section."""
    start_timeout_s: float = 600.0
    """Seconds that the learner may take to start."""
    step_timeout_s: float = 1800.0
    """Seconds that one update may take."""
    max_restarts: int = 3
    """How often a learner that died, or hung, is started again from the newest checkpoint before the run stops."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Train an adapter only; a section of its own."""


@dataclass(kw_only=True)
class SyncConfig:
    """How new weights reach the engines."""

    backend: Literal["auto", "gloo", "nccl", "ipc"] = "auto"
    """How weights travel: gloo (CPU), nccl (GPUs apart), ipc (learner and engine share one GPU)."""
    bucket_mib: int = 64
    """Size of one packed bucket, MiB."""
    timeout_s: float = 300.0
    """Seconds that one sync may take before the run stops with the name of who is missing."""


@dataclass(kw_only=True)
class EvalConfig:
    """Evaluation on held-out prompts."""

    every: int = 0
    """Evaluate every this many steps; 0: not between."""
    at_start: bool = True
    """Evaluate before the first step."""
    at_end: bool = True
    """Evaluate after the last step."""
    prompts: int = 128
    """Held-out prompts."""
    samples: int = 32
    """Completions per held-out prompt, n of the unbiased pass@k."""
    k: list[int] = field(default_factory=lambda: [1, 4, 8, 16])
    """The k of pass@k and max@k; each at most `samples`."""
    greedy: bool = False
    """Also complete each held-out prompt once with the likeliest tokens, for `eval/greedy`."""


@dataclass(kw_only=True)
class TrackingConfig:
    """What is written down besides metrics.jsonl."""

    tensorboard: bool = True
    """Write TensorBoard files, fed from metrics.jsonl."""
    save_rollouts: int = 1
    """Groups of each step whose completions are written to `rollouts/`; 0: none."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """What is saved so that a run can go on after it was stopped."""

    every: int = 50
    """Save every this many steps, after the last step and when the run is stopped; 0: never. On disk a checkpoint has
    12 bytes for each parameter that is trained."""
    keep_last: int = 2
    """Newest checkpoints to keep."""
    keep_every: int = 0
    """Also keep the checkpoints whose step is a multiple of this; 0: none."""
    keep_best: str | None = None
    """Also keep the checkpoint with the highest value of this metric, for example `eval/pass@8`; null: none."""
    asynchronous: bool = False
    """Write the files while training goes on, from a copy in host memory: 12 bytes for each of these."""
    policy: bool = False
    """Put the policy as a Hugging Face folder into each checkpoint, too."""
    remote: str | None = None
    """URL that checkpoints are copied to and fetched from, such as s3://bucket/prefix, gs://... or file:///folder; the
    drivers are maxpo[s3] and maxpo[gcs]. A copy that fails is told and counted, and the run goes on. null: none."""
    remote_options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Options of `remote`'s fsspec driver, such as endpoint_url; secrets only as ${oc.env:NAME}."""
    stop_within_s: float = 300.0
    """Seconds in which a run that is told to stop (Ctrl-C, SIGTERM, SIGUSR1) must have ended its step and saved; after
    that it ends at once, and what came after the last checkpoint is lost."""
    resume: str = "never"
    """auto: go on from the newest good checkpoint of the run folder, or start anew where there is none; must: go on, or
    fail; never: start anew; or the folder of a checkpoint."""


@dataclass(kw_only=True)
class Config:
    """A whole run."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
