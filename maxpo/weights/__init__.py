"""Weights on their way to the engines: buckets, rendezvous, checksums."""
