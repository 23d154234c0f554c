"""Verifiers that score the text of an answer, one per file."""
