"""Optimizers' settings that know the structure of the network."""

from overlock_mm.optim.layer_decay import OverLoCKLayerDecayConstructor, layer_of

__all__ = ['OverLoCKLayerDecayConstructor', 'layer_of']
