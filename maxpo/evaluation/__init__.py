"""Evaluation: figures of a policy on held-out prompts, result files, and comparisons."""
