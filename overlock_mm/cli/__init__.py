"""Shared parts of the command line programs. The models do not need them."""
