"""What runs inside a launched rank; the only part of live that may import torch and DeepSpeed."""
