"""Policy losses, their aggregation, and token log-probabilities."""
