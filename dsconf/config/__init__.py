"""The ds_config: reading, checking and writing it."""
