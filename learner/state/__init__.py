"""Saved state of the learner."""
