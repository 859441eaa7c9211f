"""What is alive at each moment of initialisation and of a step."""
