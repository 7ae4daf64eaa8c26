"""The OverLoCK backbone (arXiv 2502.20087, figure 3)."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import MODELS
from torch import Tensor, nn

from overlock_mm.deploy.folding import check_fusing, fuse, reparameterize
from overlock_mm.layers.basic import LayerNorm2d, initialise_projections
from overlock_mm.layers.context_residual import ContextResidual
from overlock_mm.layers.recompute import RECOMPUTE, RecomputableBlock
from overlock_mm.layers.stem import Stem
from overlock_mm.models.arch import STAGE_BLOCKS, STAGE_ENTRIES, STAGES, OverLoCKArch
from overlock_mm.models.base_net import BaseNet
from overlock_mm.models.focus_net import FocusNet
from overlock_mm.models.overview_net import OverviewNet
from overlock_mm.ops.contmix.backends import BACKENDS

#: Smallest side of an image: one token at stride 32.
MIN_IMAGE_SIZE = 32
#: Index in `out_indices` of the Overview-Net's output.
OVERVIEW_INDEX = 4


def _checked_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    indices = tuple(out_indices)
    if not indices or any(i not in range(OVERVIEW_INDEX + 1) for i in indices):
        raise ValueError(
            f'out_indices must be a non-empty sequence of integers from 0 to {OVERVIEW_INDEX} '
            f'(0 to 3: the pyramid; {OVERVIEW_INDEX}: the Overview-Net), got {out_indices!r}.'
        )
    return indices


def _checked_frozen_stages(frozen_stages: int) -> int:
    if frozen_stages not in range(-1, len(STAGES) + 1):
        raise ValueError(
            f'frozen_stages must be from -1 (none) to {len(STAGES)} (all of '
            f'{", ".join(STAGES)}), got {frozen_stages!r}.'
        )
    return frozen_stages


def _checked_recompute(recompute: str | Sequence[str]) -> tuple[str, ...]:
    choices = (recompute,) * len(STAGES) if isinstance(recompute, str) else tuple(recompute)
    if len(choices) != len(STAGES) or any(choice not in RECOMPUTE for choice in choices):
        raise ValueError(
            f'recompute must be one of {", ".join(RECOMPUTE)}, or one for each of '
            f'{", ".join(STAGES)}, got {recompute!r}.'
        )
    return choices


def _checked_with_cp(with_cp: bool | Sequence[bool]) -> tuple[bool, ...]:
    if isinstance(with_cp, bool):
        return (with_cp,) * len(STAGES)
    flags = tuple(with_cp)
    if len(flags) != len(STAGES) or not all(isinstance(flag, bool) for flag in flags):
        raise ValueError(
            f'with_cp must be a bool or one bool for each of {", ".join(STAGES)}, got {with_cp!r}.'
        )
    return flags


def _drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Return each block's rate by stage, rising linearly from 0 to ``rate`` over all blocks."""
    # The rates are numbers, also where the network is built on the meta device.
    rates = torch.linspace(0, rate, sum(depths), dtype=torch.float64, device='cpu').tolist()
    ends = list(accumulate(depths))
    return [rates[end - depth : end] for end, depth in zip(ends, depths, strict=True)]


@MODELS.register_module()
class OverLoCK(BaseModule):
    """The OverLoCK backbone.

    Args:
        arch: Variant ``'xt'``, ``'t'``, ``'s'`` or ``'b'``, or the fields of
            :class:`OverLoCKArch` as a dict.
        in_channels: Channels of the image.
        out_indices: Outputs to return, ascending: 0 to 3 are the pyramid at strides 4,
            8, 16 and 32; 4 is the Overview-Net's output at stride 32, never
            normalised, from which the auxiliary classifier learns.
        frozen_stages: Freeze the stem (0) and the first n stages in the order base1,
            base2, base3, overview, focus3, focus4; -1 freezes nothing.
        norm_eval: Keep batch norms in evaluation mode while training.
        norm_cfg: Type of the batch norms, ``BN`` or ``SyncBN``.
        drop_path_rate: Drop path rate of the last block; it rises linearly from 0 over all blocks.
        recompute: What the backward pass computes again to save memory, of the whole network
            or of each of the six stages: ``'none'``; ``'cheap'``, all but the results of costly
            operations; ``'blocks'``, whole blocks from their inputs. Outputs, gradients and
            batch-norm statistics are the same. Under torch.compile it does nothing.
        with_cp: OpenMMLab's name for ``recompute='blocks'``: a bool, or one for each of the six
            stages. Where it is True, ``recompute`` does not matter.
        output_norm: True, the dense-prediction form: a LayerNorm for each output of
            the pyramid. As published, Base-Net stage 3 is then fed with the
            *normalised* output 1, so that norm exists regardless of ``out_indices``.
            False, the classification form.
        context_residual: The detection form: adds a residual from the overview to
            output 3, after its LayerNorm. Needs ``output_norm``.
        contmix_backend: Backend of :func:`overlock_mm.ops.contmix`; None chooses.
        deploy: Build the fused form, for inference with weights that were written after
            :meth:`switch_to_deploy`.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` takes official files and
            ours; see :mod:`overlock_mm.checkpoint`.

    Raises:
        ValueError: A number or name is out of its range.

    Example:
        >>> model = OverLoCK('t')
        >>> [tuple(x.shape) for x in model(torch.rand(1, 3, 224, 224))]
        [(1, 64, 56, 56), (1, 128, 28, 28), (1, 384, 14, 14), (1, 640, 7, 7)]
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] | OverLoCKArch,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_cfg: Mapping[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        recompute: str | Sequence[str] = 'cheap',
        with_cp: bool | Sequence[bool] = False,
        output_norm: bool = True,
        context_residual: bool = False,
        contmix_backend: str | None = None,
        deploy: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.init_cfg: Any
        self.arch = OverLoCKArch.from_spec(arch)
        self.in_channels = in_channels
        self.out_indices = _checked_out_indices(out_indices)
        self.frozen_stages = _checked_frozen_stages(frozen_stages)
        choices = zip(_checked_recompute(recompute), _checked_with_cp(with_cp), strict=True)
        self.recompute = tuple('blocks' if flag else choice for choice, flag in choices)
        self.norm_eval = norm_eval
        self.output_norm = output_norm
        self.context_residual = context_residual
        #: One of :data:`overlock_mm.layers.forms.FORMS`.
        self.form = 'training'
        if not 0.0 <= drop_path_rate < 1.0:
            raise ValueError(f'drop_path_rate must be in [0, 1), got {drop_path_rate}.')
        if context_residual and not (output_norm and 3 in self.out_indices):
            raise ValueError(
                'context_residual=True needs output_norm=True and output 3, to which it adds; got '
                f'output_norm={output_norm} and out_indices={self.out_indices}.'
            )
        BACKENDS.check(contmix_backend)  # an unknown name fails here, not in the first forward
        norm_cfg = dict(type='BN') if norm_cfg is None else norm_cfg

        rates = _drop_path_rates(drop_path_rate, self.arch.depths)
        self.base_net = BaseNet(self.arch, in_channels, rates[:3], norm_cfg)
        self.overview_net = OverviewNet(self.arch, rates[3], norm_cfg)
        self.focus_net = FocusNet(self.arch, rates[4:], norm_cfg, contmix_backend)
        widths = self.arch.pyramid_channels
        # A norm without an output would be a parameter without a gradient, which
        # distributed training refuses. The norm of output 1 is on the path.
        normed = {i for i in (*self.out_indices, 1) if i != OVERVIEW_INDEX} if output_norm else ()
        for i in sorted(normed):
            self.add_module(f'norm{i}', LayerNorm2d(widths[i]))
        if context_residual:
            self.overview_residual = ContextResidual(self.arch.channels[3], widths[3])
        self._pass_on_recompute()
        initialise_projections(self)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if deploy:
            self.switch_to_deploy()

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each returned output."""
        widths = (*self.arch.pyramid_channels, self.arch.channels[3])
        return tuple(widths[i] for i in self.out_indices)

    def init_weights(self) -> None:
        """Load the weights that ``init_cfg`` names, or keep those of the constructor.

        Raises:
            CheckpointError: The file cannot be read.
            CheckpointMismatchError: It belongs to another variant or form.
        """
        if (self.init_cfg or {}).get('type') in ('Pretrained', PretrainedInit):
            # The initializer of `overlock_mm.checkpoint`, as mmengine's own accepts any file and
            # ignores what does not fit.
            self.init_cfg = {**self.init_cfg, 'type': 'OverLoCKPretrained'}
        super().init_weights()

    def _pass_on_recompute(self) -> None:
        for stage, choice in zip(STAGES, self.recompute, strict=True):
            for part in self._modules_of_stage(stage):
                for module in part.modules():
                    if isinstance(module, RecomputableBlock | Stem):
                        module.recompute = choice

    def _modules_of_stage(self, stage: str) -> list[nn.Module]:
        """Return the modules that ``frozen_stages`` freezes together with a stage."""
        paths = [*STAGE_ENTRIES[stage], STAGE_BLOCKS[stage]]
        if stage == 'base2' and self.output_norm:
            paths.append('norm1')  # on the path to base3
        return [self.get_submodule(path) for path in paths]

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        stages = STAGES[: self.frozen_stages]
        parts = [part for stage in stages for part in self._modules_of_stage(stage)]
        return [self.base_net.downsamples[0], *parts]

    def train(self, mode: bool = True) -> 'OverLoCK':
        """Switch the mode; frozen stages, and batch norms under ``norm_eval``, stay in eval."""
        super().train(mode)
        if mode:
            for module in self._frozen_modules():
                module.eval()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
        return self

    @property
    def deploy(self) -> bool:
        """Whether the network is in fused form. The name is mmpretrain's."""
        return self.form == 'fused'

    def reparameterize(self) -> None:
        """Fold the dilated branches into the large convolutions. Idempotent.

        It is the form in which the authors publish weights for inference. Outputs in evaluation
        stay the same up to rounding.

        Raises:
            TypeError: A module is of another type than the original; the network is as before.
            ValueError: A batch norm keeps no running statistics.
        """
        if self.form == 'training':
            reparameterize(self)
            self.form = 'reparameterized'

    def switch_to_deploy(self, check: bool = False) -> None:
        """Fuse the network for inference: fold all that is constant in evaluation. Idempotent.

        Dilated branches, batch norms, layer scales, residual depthwise convolutions and the
        scale of the affinity disappear into the convolutions beside them. Outputs in
        evaluation stay the same up to rounding, and are maps in channels_last memory. The
        parameters are constants from then on: a model that is trained further around it
        keeps this backbone frozen.

        Args:
            check: Fuse copies in float64 first, one with these batch-norm statistics and one
                with random ones, and compare their outputs.

        Raises:
            RuntimeError: The check found outputs that differ; the network is as before.
            TypeError: A module is of another type than the original; the network is as before.
            ValueError: A batch norm keeps no running statistics.
        """
        if self.form == 'fused':
            return
        if check:
            check_fusing(self, self.in_channels)
        fuse(self)
        self.form = 'fused'

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute multi-scale features of a batch of images.

        Args:
            x: [B, in_channels, H, W], sides of at least 32 pixels.

        Returns:
            One map per entry of ``out_indices``: [B, out_channels[i], H / s, W / s]
            (rounded up) with strides s = 4, 8, 16, 32 and 32.

        Raises:
            ValueError: The image is not four-dimensional or too small.
        """
        if x.dim() != 4:
            raise ValueError(f'The input must be [B, C, H, W], got {list(x.shape)}.')
        if min(x.shape[-2:]) < MIN_IMAGE_SIZE:
            raise ValueError(
                f'Images must have sides of at least {MIN_IMAGE_SIZE} pixels, got '
                f'{x.shape[-2]} x {x.shape[-1]}. Resize or pad them.'
            )
        if self.form == 'fused':
            x = x.contiguous(memory_format=torch.channels_last)
        outputs: dict[int, Tensor] = {}
        outputs[0] = x = self.base_net(x, 0)
        outputs[1] = x = self.base_net(x, 1)
        if self.output_norm:
            outputs[1] = x = self.norm1(x)
        if max(self.out_indices) > 1:
            x = self.base_net(x, 2)
            outputs[OVERVIEW_INDEX] = overview = self.overview_net(x)
            prior = self.focus_net.prior(overview)
            if {2, 3} & set(self.out_indices):
                outputs[2] = x = self.focus_net.stage3(x, prior)
            if 3 in self.out_indices:
                outputs[3] = self.focus_net.stage4(x, prior)
        for i in {0, 2, 3} & set(self.out_indices) if self.output_norm else ():
            outputs[i] = getattr(self, f'norm{i}')(outputs[i])
        if self.context_residual:
            outputs[3] = outputs[3] + self.overview_residual(overview)
        return tuple(outputs[i] for i in self.out_indices)


def image_channels(model: nn.Module) -> int:
    """Return the image channels that a model's backbone takes; 3 if it is not an OverLoCK."""
    channels = (part.in_channels for part in model.modules() if isinstance(part, OverLoCK))
    return next(channels, 3)
