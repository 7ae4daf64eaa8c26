"""Folding a trained network for inference, and the layers of the folded form."""
