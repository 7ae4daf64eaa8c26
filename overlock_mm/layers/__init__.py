"""The layers and blocks that the networks are made of; they need only torch."""
