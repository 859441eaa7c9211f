"""DeepSpeed config generator and memory estimator."""

__version__ = "0.1.0"
