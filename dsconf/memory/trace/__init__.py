"""A live module traced on fake tensors; the only part of planning that may import torch."""
