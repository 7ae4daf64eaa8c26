"""Depthwise convolutions: with their surroundings, as the deployed network calls them, and bare.

With their surroundings they are for inference, and only their forward pass is measured.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from overlock_mm import ops
from overlock_mm.models.arch import ARCHS, OverLoCKArch
from overlock_mm.ops.depthwise import reference
from overlock_mm.ops.depthwise.backends import BACKENDS, Call

logger = logging.getLogger('benchmarks')

EPS = 1e-6
#: Image size and batch sizes.
IMAGES = {(224, 224): (1, 8), (512, 512): (1,), (800, 1280): (1,)}
#: What is timed: all its results, as a tuple.
Implementation = Callable[[], tuple[Tensor, ...]]
Convolution = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DepthwiseCase:
    """One call as the network makes it.

    Attributes:
        op: In the deployed network 'depthwise_norm' (then LayerNorm), 'depthwise_mean' (then the
            mean, for squeeze-excite), or 'depthwise_mlp' (GELU before, then the norm, for GRN);
            'depthwise_train' is the bare convolution of training.
        batch: B.
        channels: C.
        height: Rows of the map.
        width: Columns of the map.
        kernel_size: K.
        origin: Where the network makes this call.
    """

    op: str
    batch: int
    channels: int
    height: int
    width: int
    kernel_size: int
    origin: str

    @property
    def name(self) -> str:
        """Unique and stable: results are compared by it."""
        return (
            f'{self.op}-b{self.batch}-c{self.channels}'
            f'-{self.height}x{self.width}-k{self.kernel_size}'
        )

    def arguments(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """The map, the weight, the bias, and weight and bias of a LayerNorm."""
        generator = torch.Generator().manual_seed(0)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator).to(device, dtype)

        c, k = self.channels, self.kernel_size
        x = normal(self.batch, c, self.height, self.width)
        weight = normal(c, 1, k, k) / k
        return [x.to(memory_format=torch.channels_last), weight, *(normal(c) for _ in range(3))]

    def training_arguments(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """Map and weight, leaves that ask for gradients; the weight stays float32."""
        x, weight, *_ = self.arguments(device, torch.float32)
        return [x.to(dtype).requires_grad_(), weight.requires_grad_()]

    def forward_flops(self) -> int:
        """Operations of the convolution, with a multiply-add counted as two, borders included."""
        pixels = self.batch * self.height * self.width
        return 2 * pixels * self.channels * self.kernel_size**2

    def floor_bytes(self, tensors: list[Tensor]) -> int:
        """Bytes that any implementation must move: the map read, each result written once."""
        maps = 3 if self.op == 'depthwise_norm' else 2
        return maps * tensors[0].numel() * tensors[0].element_size()

    def as_dict(self) -> dict:
        """The case as plain data, for the results file."""
        return {**asdict(self), 'name': self.name}


def functions(
    case: DepthwiseCase, tensors: list[Tensor]
) -> tuple[dict[str, Implementation], dict[str, Implementation]]:
    """Our backends that can run the case, and the definition by the library's functions."""
    x, weight, bias, *norm = tensors
    op = 'depthwise_conv2d_norm' if case.op == 'depthwise_norm' else 'depthwise_conv2d_stats'
    call = Call(op, x.device, x.dtype)
    able = {name for name, why in ops.available_backends(call).items() if not why}
    innermost = ops.channels_innermost(weight)

    def ours(backend: str) -> Implementation:
        if case.op == 'depthwise_norm':
            return lambda: ops.depthwise_conv2d_norm(
                x, innermost, bias, *norm, EPS, backend=backend
            )
        gelu, stat = case.op == 'depthwise_mlp', _stat(case)
        return lambda: ops.depthwise_conv2d_stats(
            x, innermost, bias, gelu_input=gelu, stat=stat, backend=backend
        )

    backends = {name: ours(name) for name in BACKENDS if name in able - {'reference'}}
    planes = x.contiguous()
    library = {'chain': lambda: _chain(case, x, *tensors[1:])}
    library['chain, NCHW'] = lambda: _chain(case, planes, *tensors[1:])
    if x.device.type == 'cuda':
        library |= {f'{name}, without cuDNN': _without_cudnn(f) for name, f in library.items()}
        compiled = torch.compile(_chain, fullgraph=True, dynamic=False)
        library['chain, compiled'] = lambda: compiled(case, x, *tensors[1:])
    return backends, library


def _chain(
    case: DepthwiseCase, x: Tensor, weight: Tensor, bias: Tensor, *norm: Tensor
) -> tuple[Tensor, ...]:
    if case.op == 'depthwise_norm':
        return reference.depthwise_conv2d_norm(x, weight, bias, *norm, EPS, None, None)
    gelu = case.op == 'depthwise_mlp'
    return reference.depthwise_conv2d_stats(x, weight, bias, None, None, gelu, _stat(case))


def _without_cudnn(function: Implementation) -> Implementation:
    """With torch's own depthwise kernels, which it does not always choose."""

    def call() -> tuple[Tensor, ...]:
        with torch.backends.cudnn.flags(enabled=False):
            return function()

    return call


def _stat(case: DepthwiseCase) -> str:
    return 'mean' if case.op == 'depthwise_mean' else 'norm'


def expected_results(case: DepthwiseCase, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """All results of the definition, in float32 from the same values."""
    return _chain(case, *(x.float() for x in tensors))


def training_functions(
    case: DepthwiseCase, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Convolution], dict[str, Convolution]]:
    """Our backends with gradients, and the library, as functions of map and weight."""
    call = Call('depthwise_conv2d', device, dtype, kernel_size=case.kernel_size, gradient=True)
    able = {name for name, why in ops.available_backends(call).items() if not why}
    backends: dict[str, Convolution] = {
        name: partial(ops.depthwise_conv2d, backend=name)
        for name in BACKENDS
        if name in able - {'reference'}
    }
    library: dict[str, Convolution] = {'library': _convolution}
    if device.type == 'cuda':
        library['library, without cuDNN'] = _convolution_without_cudnn
    return backends, library


def _convolution(x: Tensor, weight: Tensor) -> Tensor:
    channels, _, k, _ = weight.shape
    return F.conv2d(x, weight.to(x.dtype), padding=k // 2, groups=channels)


def _convolution_without_cudnn(x: Tensor, weight: Tensor) -> Tensor:
    with torch.backends.cudnn.flags(enabled=False):
        return _convolution(x, weight)


def training_cases(arch: OverLoCKArch = ARCHS['t'], batch: int = 64) -> Iterator[DepthwiseCase]:
    """The large kernels at every resolution of an image of 224 x 224."""
    for stage, (channels, kernel_size) in enumerate(
        zip(arch.channels, arch.kernel_sizes, strict=True)
    ):
        side = 224 >> (stage + 2)
        origin = f'T, stage {stage + 1}, 224 x 224'
        yield DepthwiseCase('depthwise_train', batch, channels, side, side, kernel_size, origin)


def all_cases(arch: OverLoCKArch = ARCHS['t']) -> Iterator[DepthwiseCase]:
    """The blocks of Base-Net and Overview-Net at every resolution, small first."""
    for (height, width), batches in IMAGES.items():
        for batch in batches:
            for stage, (channels, kernel_size) in enumerate(
                zip(arch.channels, arch.kernel_sizes, strict=True)
            ):
                size = (height >> (stage + 2), width >> (stage + 2))
                hidden = arch.mlp_ratios[0] * channels
                origin = f'T, stage {stage + 1}, {height} x {width}'
                for op, c, k in (
                    ('depthwise_norm', channels, 3),
                    ('depthwise_mean', channels, kernel_size),
                    ('depthwise_mlp', hidden, 3),
                ):
                    yield DepthwiseCase(op, batch, c, *size, k, origin)
