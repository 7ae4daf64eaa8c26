"""Depthwise convolution together with the element-wise work around it, for deployed networks."""

from overlock_mm.ops.selection import load_backends

# On a GPU cuDNN, the definition, comes first until a measurement there says otherwise.
load_backends(__name__, 'cpu', 'reference', 'cuda', 'triton')
