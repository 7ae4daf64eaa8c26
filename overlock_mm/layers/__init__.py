"""Layers and blocks of the network. They need only torch."""
