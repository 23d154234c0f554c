"""Evaluation: figures of a policy on held-out prompts, files of them, and comparisons."""
