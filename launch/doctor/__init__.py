"""`maxpo doctor`: facts of the machines, and what they mean for a run."""
