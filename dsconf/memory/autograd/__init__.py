"""torch's autograd: what an operation saves, what backward frees, the highest point of both."""
