"""Runs a real training step; the only place that may import torch or deepspeed, and only in the worker."""
