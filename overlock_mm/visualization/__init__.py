"""Visualizers of mmengine that upsample small images before they draw on them."""
