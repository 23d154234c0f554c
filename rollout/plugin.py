"""Entry point that vLLM calls in each of its processes. Imports nothing until a receiver is asked for."""

RECEIVERS = {"gloo": "GlooReceiver", "maxpo_nccl": "NcclReceiver", "maxpo_ipc": "IpcReceiver"}
"""Names of the weight-transfer backends as vLLM's configuration knows them, and their classes."""


def register() -> None:
    """Make our weight receivers known to vLLM; safe to call more than once in a process."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    for name, class_name in RECEIVERS.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, "rollout.weight_receiver", class_name)
