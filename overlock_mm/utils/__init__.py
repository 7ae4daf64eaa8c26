"""What the command line tools share; not needed to use the models."""
