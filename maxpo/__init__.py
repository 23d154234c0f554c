"""MaxPO: reinforcement learning post-training for pass@K and max@K (arXiv 2606.06080)."""

__version__ = "0.1.0"
