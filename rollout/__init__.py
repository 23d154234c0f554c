"""The sampling side: vLLM engines in Ray actors, and the verifiers beside them."""
