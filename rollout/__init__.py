"""Sampling: vLLM engines in Ray actors, and the processes of verifiers and environments."""
