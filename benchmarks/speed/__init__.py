"""Accuracy of the step times, and the measurements that they are fitted to."""
