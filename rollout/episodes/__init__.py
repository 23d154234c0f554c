"""Completions of several turns with an environment."""
