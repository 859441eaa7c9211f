"""Accuracy and time of the memory model."""
