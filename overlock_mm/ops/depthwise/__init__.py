"""Depthwise convolution together with the element-wise work around it, for deployed networks."""
