"""Jinja2 templates shipped with dsconf."""
