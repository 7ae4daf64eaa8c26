"""The variants of OverLoCK as data. No other file holds their numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from overlock_mm.layers.reparam import DILATED_BRANCHES

#: The stages in the order of execution. `depths`, `frozen_stages` and `with_cp`
#: follow it.
STAGES = ('base1', 'base2', 'base3', 'overview', 'focus3', 'focus4')
#: Where the network holds the blocks of each stage.
STAGE_BLOCKS = {
    'base1': 'base_net.stages.0',
    'base2': 'base_net.stages.1',
    'base3': 'base_net.stages.2',
    'overview': 'overview_net.blocks',
    'focus3': 'focus_net.stages.0',
    'focus4': 'focus_net.stages.1',
}
#: Where the network holds the layers that precede the blocks of each stage.
STAGE_ENTRIES = {
    'base1': ('base_net.downsamples.0',),
    'base2': ('base_net.downsamples.1',),
    'base3': ('base_net.downsamples.2',),
    'overview': ('overview_net.downsample',),
    'focus3': ('focus_net.prior_proj',),
    'focus4': ('focus_net.downsample_features', 'focus_net.downsample_context'),
}


@dataclass(frozen=True)
class OverLoCKArch:
    """The sizes that define a variant (paper table 1).

    Args:
        channels: Widths C1 to C4 of the four resolutions (strides 4, 8, 16, 32).
        depths: Blocks of each stage, in the order of :data:`STAGES`.
        groups: Dynamic-kernel groups per kernel in Focus-Net stage 3 and 4, as
            published. Each group has its own kernels and the value channels are
            halved between the two kernel sizes, so twice as many are really used.
        kernel_sizes: Window of the large kernels at the four resolutions.
        mlp_ratios: Hidden over input width, in Base-Net and Overview-Net blocks and
            in Focus-Net blocks.
        contmix_small_kernel: Window of the smaller ContMix kernel.

    Raises:
        ValueError: A number contradicts the network's structure.
    """

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int, int, int]
    groups: tuple[int, int]
    kernel_sizes: tuple[int, int, int, int] = (17, 15, 13, 7)
    mlp_ratios: tuple[int, int] = (4, 3)
    contmix_small_kernel: int = 5

    def __post_init__(self) -> None:
        lengths = {'channels': 4, 'depths': 6, 'groups': 2, 'kernel_sizes': 4, 'mlp_ratios': 2}
        for name, length in lengths.items():
            value = getattr(self, name)
            if isinstance(value, str) or not hasattr(value, '__len__') or len(value) != length:
                raise ValueError(f'arch.{name} must have {length} integers, got {value!r}.')
            if any(not isinstance(v, int) or isinstance(v, bool) or v < 1 for v in value):
                raise ValueError(f'arch.{name} must hold positive integers, got {value!r}.')
            object.__setattr__(self, name, tuple(value))  # lists come from configs
        self._check_channels()
        self._check_kernel_sizes()

    def _check_channels(self) -> None:
        if self.channels[0] % 2:
            raise ValueError(
                f'arch.channels[0] must be even, as the stem starts with half of it, '
                f'got {self.channels[0]}.'
            )
        if self.channels[3] % 4:
            raise ValueError(
                f'arch.channels[3] must be divisible by 4, as the context has a quarter '
                f'of it, got {self.channels[3]}.'
            )
        for stage, width, groups in zip((3, 4), self.channels[2:], self.groups, strict=True):
            if width % (4 * groups):
                raise ValueError(
                    f'The width of Focus-Net stage {stage} must be divisible by 4 * groups '
                    f'(two kernel sizes, twice the published groups), got width {width} and '
                    f'groups {groups}. Use a width that is a multiple of {4 * groups}.'
                )

    def _check_kernel_sizes(self) -> None:
        for kernel_size in self.kernel_sizes:
            if kernel_size not in DILATED_BRANCHES:
                known = ', '.join(str(k) for k in sorted(DILATED_BRANCHES))
                raise ValueError(
                    f'arch.kernel_sizes must be odd and one of {known}, got {kernel_size}.'
                )
        small, limit = self.contmix_small_kernel, min(self.kernel_sizes[2:])
        if not isinstance(small, int) or small % 2 == 0 or not 3 <= small <= limit:
            raise ValueError(
                f'arch.contmix_small_kernel must be odd, at least 3 and at most the kernel '
                f'sizes of stages 3 and 4 ({limit}), got {small!r}.'
            )

    @property
    def context_channels(self) -> int:
        """Width of the context prior, a quarter of C4 (paper section 3.2)."""
        return self.channels[3] // 4

    @property
    def pyramid_channels(self) -> tuple[int, int, int, int]:
        """Widths of the outputs at strides 4, 8, 16 and 32."""
        c1, c2, c3, c4 = self.channels
        return c1, c2, c3 + self.context_channels, c4 + self.context_channels

    @classmethod
    def from_spec(cls, arch: 'str | Mapping[str, Any] | OverLoCKArch') -> 'OverLoCKArch':
        """Return a variant by name, or build one from a mapping with this class's fields.

        Raises:
            ValueError: Unknown name or field, a missing field, or a bad number.
            TypeError: Neither a name nor a mapping.
        """
        if isinstance(arch, OverLoCKArch):
            return arch
        if isinstance(arch, str):
            if arch not in ARCHS:
                raise ValueError(f'arch must be one of {", ".join(ARCHS)} or a dict, got {arch!r}.')
            return ARCHS[arch]
        if not isinstance(arch, Mapping):
            raise TypeError(f'arch must be a name or a dict, got {type(arch).__name__}.')
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(arch) - set(names))
        if unknown:
            raise ValueError(
                f'arch has unknown keys {", ".join(unknown)}. Known: {", ".join(names)}.'
            )
        missing = [name for name in names[:3] if name not in arch]
        if missing:
            raise ValueError(f'arch lacks {", ".join(missing)}. Known keys: {", ".join(names)}.')
        return cls(**arch)


ARCHS: dict[str, OverLoCKArch] = {
    'xt': OverLoCKArch((56, 112, 256, 336), (2, 2, 3, 2, 6, 2), (4, 6)),
    't': OverLoCKArch((64, 128, 256, 512), (4, 4, 6, 2, 12, 2), (4, 8)),
    's': OverLoCKArch((64, 128, 320, 512), (6, 6, 8, 3, 16, 3), (8, 16)),
    'b': OverLoCKArch((80, 160, 384, 576), (8, 8, 10, 4, 20, 4), (6, 9)),
}
