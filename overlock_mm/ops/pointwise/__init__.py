"""1 x 1 convolutions as matrix products, for deployed networks."""

from overlock_mm.ops.selection import load_backends

load_backends(__name__, 'onednn', 'reference')
