"""The parent of the training processes: starts, watches and ends them. Imports no torch."""
