"""The vLLM engine, and the code that runs inside vLLM's processes."""
