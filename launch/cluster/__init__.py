"""Ray clusters, placement of actors, and the whole system on them."""
