"""The files and command lines that start training with a config."""
