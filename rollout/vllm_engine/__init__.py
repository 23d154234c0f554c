"""What runs inside vLLM's processes, and the engine in front of them."""
