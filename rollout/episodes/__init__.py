"""Completions of several turns."""
