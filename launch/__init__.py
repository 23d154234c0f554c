"""From a command line to a run: configuration, cluster, placement, progress."""
