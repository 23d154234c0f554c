"""Jobs on clusters: Ray, SLURM, Kubernetes."""
