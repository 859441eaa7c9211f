"""Makes the schemas from DeepSpeed's own sources."""
