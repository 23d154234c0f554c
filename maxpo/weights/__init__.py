"""Transfer of weights to the engines: buckets, rendezvous, checksums."""
