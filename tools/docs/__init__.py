"""Refreshes the pages that hold printed figures."""
