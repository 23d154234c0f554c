"""The learner's part of a checkpoint, and the exported policy."""
