"""What is said of an answer: why it won, what one change would do, why nothing fits."""
