"""What the command line programs share; not needed to use the models."""
