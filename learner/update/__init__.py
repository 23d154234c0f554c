"""One training step: loss, gradient, optimizer."""
