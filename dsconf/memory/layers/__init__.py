"""What the families' layers, embedding and loss run, operation by operation."""
