"""How well and how fast validate finds what is wrong."""
