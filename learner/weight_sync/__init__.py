"""The sending end of the weight sync."""
