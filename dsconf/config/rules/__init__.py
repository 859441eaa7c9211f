"""One rule, one function, one code."""
