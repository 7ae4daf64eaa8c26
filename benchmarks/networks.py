"""Whole networks: what is compared, in which forms, and at which sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from overlock_mm import OverLoCK
from overlock_mm.layers.recompute import RECOMPUTE

#: Batches of the cases by device: image size to batch sizes.
INFERENCE: dict[str, dict[tuple[int, int], tuple[int, ...]]] = {
    'cpu': {(224, 224): (1, 8), (512, 512): (1, 8), (800, 1280): (1, 8)},
    'cuda': {(224, 224): (1, 64), (800, 1280): (1,)},
}
TRAINING: dict[str, dict[tuple[int, int], tuple[int, ...]]] = {
    'cpu': {(224, 224): (8,), (512, 512): (2,)},
    'cuda': {(224, 224): (64,)},
}
LAYOUTS = {'NCHW': torch.contiguous_format, 'channels_last': torch.channels_last}
#: How a training step saves memory on a GPU, ours and others, as arguments of the network.
SAVINGS: dict[str, dict[str, Any]] = {
    **{f'recompute {choice}': {'recompute': choice} for choice in RECOMPUTE},
    'with_cp off': {'with_cp': False},
    'with_cp on': {'with_cp': True},
}
#: What a CPU measures unless all cases are selected: about half an hour on two cores.
MAIN = (
    'inference-b1-224x224',
    'inference-b8-224x224',
    'inference-b1-512x512',
    'inference-b1-800x1280',
    'training-b8-224x224',
)


@dataclass(frozen=True)
class NetworkCase:
    """One batch of images.

    Attributes:
        mode: 'inference', or 'training' for forward and backward, on a CPU with a step of AdamW.
        batch: B.
        height: H in pixels.
        width: W in pixels.
    """

    mode: str
    batch: int
    height: int
    width: int

    @property
    def name(self) -> str:
        """Unique and stable: results are compared by it."""
        return f'{self.mode}-b{self.batch}-{self.height}x{self.width}'

    def as_dict(self) -> dict[str, Any]:
        """The case as plain data, for the results file."""
        return asdict(self)

    def image(self, device: torch.device) -> torch.Tensor:
        """Noise [B, 3, H, W]."""
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(self.batch, 3, self.height, self.width, generator=generator)
        return image.to(device)


def all_cases(device: str) -> Iterator[NetworkCase]:
    """The registry, small first."""
    for mode, table in (('inference', INFERENCE), ('training', TRAINING)):
        for (height, width), batches in table[device].items():
            for batch in batches:
                yield NetworkCase(mode, batch, height, width)


@dataclass(frozen=True)
class Network:
    """A backbone with four outputs at strides 4 to 32, as dense prediction uses it.

    Attributes:
        name: Its name in its paper.
        build: Makes it, without drop path, from further arguments.
        top1: Published ImageNet-1K accuracy at 224 x 224 in percent, without further data.
        source: Where that was published.
        needs_autocast: Whether it mixes dtypes with bfloat16 weights, so that it needs autocast.
    """

    name: str
    build: Callable[..., nn.Module]
    top1: float
    source: str
    needs_autocast: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is an OverLoCK."""
        return self.name.startswith('OverLoCK')


def _overlock(arch: str, top1: float) -> Network:
    return Network(
        f'OverLoCK-{arch.upper()}', partial(OverLoCK, arch), top1, "the authors' release table"
    )


def _mmpretrain(name: str, kind: str, top1: float, source: str, **arguments: Any) -> Network:
    def build(**further: Any) -> nn.Module:
        from mmpretrain.models import backbones

        make = getattr(backbones, kind)
        return make(out_indices=(0, 1, 2, 3), drop_path_rate=0.0, **arguments, **further)

    # The mask of Swin's shifted windows is float32.
    return Network(name, build, top1, source, needs_autocast=kind == 'SwinTransformer')


#: Ours, and the baselines in the implementations of mmpretrain.
NETWORKS = (
    _overlock('xt', 82.7),
    _overlock('t', 84.2),
    _overlock('s', 84.8),
    _overlock('b', 85.1),
    _mmpretrain('Swin-T', 'SwinTransformer', 81.3, 'arXiv 2103.14030, table 1', arch='tiny'),
    *(
        _mmpretrain(
            f'ConvNeXt-{arch[0].upper()}',
            'ConvNeXt',
            top1,
            'arXiv 2201.03545, table 1',
            arch=arch,
            gap_before_final_norm=False,
        )
        for arch, top1 in (('tiny', 82.1), ('small', 83.1), ('base', 83.8))
    ),
    _mmpretrain('RepLKNet-31B', 'RepLKNet', 83.5, 'arXiv 2203.06717, table 5', arch='31B'),
)


#: On a GPU more of them, as it is faster.
GPU_NETWORKS = (
    *NETWORKS,
    _mmpretrain('Swin-B', 'SwinTransformer', 83.5, 'arXiv 2103.14030, table 1', arch='base'),
)


def forms(network: Network, mode: str) -> tuple[str, ...]:
    """The forms of a network that a case compares."""
    if mode == 'training':
        return ('training',)
    if network.ours:
        return ('training', 'fused')
    return ('training', 'reparameterized') if 'RepLKNet' in network.name else ('training',)


def name_in_form(network: Network, form: str) -> str:
    """How results call a network in a form; a network with one form has its bare name."""
    return f'{network.name}, {form} form' if len(forms(network, 'inference')) > 1 else network.name
