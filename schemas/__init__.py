"""JSON Schemas shipped with dsconf."""
