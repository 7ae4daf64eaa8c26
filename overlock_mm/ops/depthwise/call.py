"""The properties of a call of a depthwise operator."""

from dataclasses import dataclass, field

from overlock_mm.ops import call


@dataclass(frozen=True)
class Call(call.Call):
    """The properties of a call that decide whether a backend can run it.

    Attributes:
        dilation: Distance of neighbouring taps.
        gradient: Whether the gradient of the weight is requested. That of the input is a
            convolution.
    """

    dilation: int = field(default=1, kw_only=True)
    gradient: bool = field(default=False, kw_only=True)
