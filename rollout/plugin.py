"""Entry point that vLLM calls in each of its processes. Imports nothing until a receiver is asked for."""

import multiprocessing
import os
import threading

RECEIVERS = {"gloo": "GlooReceiver", "maxpo_nccl": "NcclReceiver", "maxpo_ipc": "IpcReceiver"}
"""Names of the weight-transfer backends as vLLM's configuration knows them, and their classes."""


def register() -> None:
    """Make our weight receivers known to vLLM; safe to call more than once in a process."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    for name, class_name in RECEIVERS.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, "rollout.vllm_engine.weight_receiver", class_name)
    _end_with_parent()


def _end_with_parent() -> None:
    """Let a process of an engine end when the one that started it is killed; vLLM's own would keep its memory."""
    parent = multiprocessing.parent_process()
    if parent is None or any(thread.name == "end_with_parent" for thread in threading.enumerate()):
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()
