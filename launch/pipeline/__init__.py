"""What the asynchronous pipeline gains: a law, a simulation, and the figures of a run that both need."""
