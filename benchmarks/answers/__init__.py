"""Records what the commands answer to thousands of fixed questions, so that a change of any answer is seen.

Questions are made here and nowhere else, and asked through the command line alone: the same package runs unchanged on
code whose inside has moved.
"""
