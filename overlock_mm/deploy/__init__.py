"""Folding a trained network for inference (:mod:`overlock_mm.layers.forms`), and fused layers."""
