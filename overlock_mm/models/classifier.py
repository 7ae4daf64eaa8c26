"""Classification head for mmpretrain's ``ImageClassifier``.

Imported only by the classification configs: the backbone does not need mmpretrain.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from overlock_mm.layers.basic import ConvNorm, build_norm, initialise_projections


@MODELS.register_module()
class OverLoCKClsHead(ClsHead):
    """Main classifier, and an auxiliary one that supervises the Overview-Net (paper section 3.2).

    It reads the last two outputs of ``OverLoCK(out_indices=(3, 4), output_norm=False)``.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of output 3 and of the Overview-Net's output.
        hidden_channels: Width between the main classifier's two layers.
        auxiliary: Build the auxiliary classifier. Without it, an auxiliary classifier
            in a checkpoint is dropped on loading: files published in reparameterized
            form still have one.
        auxiliary_loss_weight: Weight of the auxiliary loss, relative to the main one.
        norm_cfg: Type of the batch norms.
        **kwargs: Arguments of mmpretrain's ``ClsHead``: loss, topk, cal_acc, init_cfg.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int],
        hidden_channels: int = 1024,
        auxiliary: bool = True,
        auxiliary_loss_weight: float = 0.4,
        norm_cfg: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if len(in_channels) != 2:
            raise ValueError(
                'in_channels must name two widths, of output 3 and of the Overview-Net, '
                f'got {in_channels!r}.'
            )
        if num_classes < 1:
            raise ValueError(f'num_classes must be positive, got {num_classes}.')
        norm_cfg = dict(type='BN') if norm_cfg is None else norm_cfg
        features, overview = in_channels
        self.num_classes = num_classes
        self.auxiliary = auxiliary
        self.auxiliary_loss_weight = auxiliary_loss_weight
        self.proj = ConvNorm(features, hidden_channels, 1, norm_cfg)
        self.fc = nn.Conv2d(hidden_channels, num_classes, 1)
        if auxiliary:
            self.aux_norm = build_norm(norm_cfg, overview)
            self.aux_fc = nn.Conv2d(overview, num_classes, 1)
        else:
            self._register_load_state_dict_pre_hook(_drop_auxiliary)
        initialise_projections(self)

    def pre_logits(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the main classifier's pooled features [B, hidden_channels]."""
        return F.silu(self.proj(feats[-2])).mean((2, 3))

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the main classifier's logits [B, num_classes]."""
        return self.fc(self.pre_logits(feats)[..., None, None]).flatten(1)

    def forward_auxiliary(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the auxiliary classifier's logits [B, num_classes]."""
        pooled = self.aux_norm(feats[-1]).mean((2, 3), keepdim=True)
        return self.aux_fc(pooled).flatten(1)

    def loss(
        self, feats: Sequence[Tensor], data_samples: list[DataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return the losses of a batch: ``loss`` and, with an auxiliary head, ``loss_aux``."""
        losses = self._get_loss(self(feats), data_samples, **kwargs)
        if self.auxiliary:
            aux = self._get_loss(self.forward_auxiliary(feats), data_samples, **kwargs)
            losses['loss_aux'] = self.auxiliary_loss_weight * aux['loss']
        return losses

    def predict(
        self, feats: Sequence[Tensor], data_samples: list[DataSample] | None = None
    ) -> list[DataSample]:
        """Return the main classifier's predictions in mmpretrain's format.

        With an auxiliary head, each sample also carries its probabilities [num_classes] as
        ``auxiliary_score``.
        """
        data_samples = super().predict(feats, data_samples)
        if self.auxiliary:
            scores = self.forward_auxiliary(feats).softmax(1)
            for sample, score in zip(data_samples, scores, strict=True):
                sample.set_field(score, 'auxiliary_score')
        return data_samples

    def drop_auxiliary(self) -> None:
        """Remove the auxiliary classifier, which is only used in training. Idempotent."""
        if self.auxiliary:
            del self.aux_norm, self.aux_fc
            self.auxiliary = False
            self._register_load_state_dict_pre_hook(_drop_auxiliary)


def _drop_auxiliary(state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in [n for n in state_dict if n.startswith((f'{prefix}aux_norm.', f'{prefix}aux_fc.'))]:
        del state_dict[name]
