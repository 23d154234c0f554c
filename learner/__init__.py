"""The training side: DeepSpeed ranks in Ray actors, and the sender of new weights."""
