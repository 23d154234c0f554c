"""Verifiers that look at an answer's text, a file each."""
