"""Entry point that vLLM calls in each of its processes. Imports no receiver before vLLM needs one."""

import multiprocessing
import os
import threading

RECEIVERS = {"gloo": "GlooReceiver", "maxpo_nccl": "NcclReceiver", "maxpo_ipc": "IpcReceiver"}
"""Weight-transfer backend in vLLM's configuration -> class of its receiver."""


def register() -> None:
    """Register the weight receivers with vLLM. Safe to call more than once in a process."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    for name, class_name in RECEIVERS.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, "rollout.vllm_engine.weight_receiver", class_name)
    _end_with_parent()


def _end_with_parent() -> None:
    """End this process of an engine when its parent is killed. Otherwise it would keep its memory."""
    parent = multiprocessing.parent_process()
    if parent is None or any(thread.name == "end_with_parent" for thread in threading.enumerate()):
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()
