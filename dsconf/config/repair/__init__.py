"""Repairs a config in its own text."""
