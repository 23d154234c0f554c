"""Environments: what answers the policy between its turns, such as a tool or a game.

An environment is a class with `reset` and `step`. One object goes through one episode. It runs in killable processes
(`rollout/episodes/environment_pool.py`) and is carried from one to the next between two steps, so it must be picklable;
nothing else of it outlives a step. This package imports nothing heavy.
"""

from maxpo.environments.base import Environment, Step

__all__ = ["Environment", "Step"]
