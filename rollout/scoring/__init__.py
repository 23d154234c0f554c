"""Verifier processes."""
