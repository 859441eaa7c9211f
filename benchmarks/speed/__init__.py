"""Accuracy of the step times, and what it is fitted to."""
