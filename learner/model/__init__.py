"""The language model: packed rows in, log-probabilities out."""
