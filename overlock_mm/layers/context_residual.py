"""The residual of the detection networks."""

from torch import Tensor, nn

from overlock_mm.layers.basic import LayerNorm2d, LayerScale


class ContextResidual(nn.Module):
    """The residual from the overview that the detection networks add to output 3."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(in_channels)
        self.proj = nn.Conv2d(in_channels, out_channels, 1)
        self.layer_scale = LayerScale(out_channels, init_value=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_scale(self.proj(self.norm(x)))
