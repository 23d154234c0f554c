"""From scored groups to packed microbatches."""
