"""The policy of a checkpoint as a Hugging Face folder, written without a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from learner.model.loading import load_language_model
from learner.model.lora import add_adapter, base_digest, check_base
from learner.model.parameters import trained_parameters
from learner.state.files import META, read_masters, saved_buffers
from learner.state.policy_folder import write_policy
from maxpo.checkpoints.local import Checkpoints
from maxpo.checkpoints.manifest import verify
from maxpo.config import Config
from maxpo.errors import CheckpointError, InputError
from maxpo.files import step_name


def export_checkpoint(config: Config, run: Path, step: int | None, target: Path) -> Path:
    """Write the policy of a checkpoint to the new folder `target`. Return the checkpoint.

    Raises:
        InputError: the target exists, the checkpoint does not exist or is damaged, or its adapter was trained on
            another base.
    """
    if target.exists():
        raise InputError(f"--to {target}: the folder exists already")
    checkpoints = Checkpoints(run / "checkpoints")
    if step is None:
        source, wrong = checkpoints.newest_good()
        if source is None:
            raise CheckpointError("\n  ".join([f"{run} has no checkpoint that can be used", *wrong]))
    elif step in checkpoints.steps():
        source = checkpoints.folder / step_name(step)
        verify(source)
    else:
        raise InputError(f"--step {step}: {run} has checkpoints of steps {checkpoints.steps()}")
    dtype = getattr(torch, config.learner.dtype)
    lm = load_language_model(config.model.path, dtype, trust_remote_code=config.model.trust_remote_code)
    lora = config.learner.lora
    if lora.rank:
        extra = json.loads((source / "learner" / META).read_text(encoding="utf-8"))["extra"]
        check_base(extra.get("base"), base_digest(lm), config.model.path)
        add_adapter(lm, lora, seed=0)
    masters = read_masters(source / "learner")
    with torch.no_grad():
        for name, parameter in trained_parameters(lm).items():
            parameter.copy_(masters[name])
        for buffer, saved in saved_buffers(source / "learner", lm):
            buffer.copy_(saved)
    write_policy(lm, config.model.path, target, lora)
    return source
