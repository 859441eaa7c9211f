"""Measures real ranks on the GPUs of one machine: memory of every rank, step times, collectives, strategies."""
