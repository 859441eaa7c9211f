"""Prints results for people and machines."""
