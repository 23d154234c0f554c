"""Shared by all tests. Ray reads its authentication when it is imported, so this comes first."""

import os

from launch.cluster.ray_environment import secure_own_cluster

# Libraries that could ask a hub for files must not; the suite runs without a network.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# One OpenMP thread in this process and those it starts: engines and learner ranks run beside it, and idle threads spin.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
secure_own_cluster()
