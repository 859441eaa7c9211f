"""Bytes of each moment of a training step."""
