"""Which config trains fastest without running out of memory."""
