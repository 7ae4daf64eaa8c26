"""The effects of a config on the parameters, the learning rate and the images of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from numpy.typing import NDArray
from torch import nn

from overlock_mm.analysis.figures import figure_style, new_figure, save_figure

#: Settings of mixed precision, which do not concern the groups and need a GPU.
_PRECISION = ('loss_scale', 'dtype', 'use_fsdp')


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with the same optimizer settings.

    Args:
        lr_mult: Their rate as a multiple of the optimizer's.
        weight_decay: Weight decay that the optimizer applies.
        names: Names of the parameters.
        numbers: How many numbers these hold.
    """

    lr_mult: float
    weight_decay: float
    names: tuple[str, ...]
    numbers: int


def parameter_groups(model: nn.Module, optim_wrapper: dict[str, Any]) -> list[ParameterGroup]:
    """Sort a model's parameters as the optimizer of a config will.

    Args:
        model: The config's model.
        optim_wrapper: The config's setting of this name.

    Returns:
        Groups by falling rate, then by falling decay. Frozen parameters are in none.
    """
    plain = {key: value for key, value in optim_wrapper.items() if key not in _PRECISION}
    wrapper = build_optim_wrapper(model, dict(plain, type='OptimWrapper'))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    base = optim_wrapper['optimizer']['lr']
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for group in wrapper.optimizer.param_groups:
        # Rates that fall by powers differ in their last digits only, where they are the same.
        key = (float(f'{group["lr"] / base:.6g}'), group['weight_decay'])
        trained = [parameter for parameter in group['params'] if parameter.requires_grad]
        members.setdefault(key, []).extend(trained)
    return [
        ParameterGroup(
            lr_mult,
            weight_decay,
            tuple(names[id(parameter)] for parameter in parameters),
            sum(parameter.numel() for parameter in parameters),
        )
        for (lr_mult, weight_decay), parameters in sorted(members.items(), reverse=True)
        if parameters
    ]


def learning_rates(cfg: Config, epoch_length: int) -> NDArray[np.float64]:
    """Return the rate at every step of a run, from the schedulers of its config.

    Args:
        cfg: A full config.
        epoch_length: Steps of an epoch.

    Returns:
        float64 [steps], of parameters whose multiplier is 1.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=cfg.optim_wrapper.optimizer.lr)
    wrapper = OptimWrapper(optimizer)
    by_step: list[Any] = []
    by_epoch: list[Any] = []
    for scheduler in cfg.get('param_scheduler') or ():
        settings = dict(scheduler, optimizer=wrapper)
        if settings.pop('convert_to_iter_based', False):
            kind = PARAM_SCHEDULERS.get(settings.pop('type'))
            built = kind.build_iter_from_epoch(epoch_length=epoch_length, **settings)
        else:
            built = PARAM_SCHEDULERS.build(settings)
        (by_epoch if built.by_epoch else by_step).append(built)
    loop = cfg.train_cfg
    steps = loop.max_epochs * epoch_length if 'max_epochs' in loop else loop.max_iters
    rates = np.empty(steps)
    wrapper.step()  # as torch demands before the first step of a scheduler
    for step in range(steps):
        rates[step] = optimizer.param_groups[0]['lr']
        for scheduler in by_step:
            scheduler.step()
        if (step + 1) % epoch_length == 0:
            for scheduler in by_epoch:
                scheduler.step()
    return rates


def plot_learning_rates(
    rates: NDArray[np.float64], epoch_length: int | None, path: str | Path
) -> None:
    """Draw the rate over a run, and its beginning beside it.

    Args:
        rates: float64 [steps].
        epoch_length: Steps of an epoch, for an axis in epochs; None for one in steps.
        path: A file of a suffix that figures have.
    """
    # Twice the warm-up, and a part of the run if there is no warm-up.
    beginning = max(2 * int(rates.argmax()) + 1, len(rates) // 100, 2)
    scale, unit = (epoch_length, 'epoch') if epoch_length else (1, 'step')
    with figure_style():
        figure = new_figure(8.0, 3.0)
        for axes, end, title in zip(
            figure.subplots(1, 2),
            (len(rates), min(beginning, len(rates))),
            ('The whole run', 'Its beginning'),
            strict=True,
        ):
            # A line with more points than the figure has pixels shows no further detail.
            shown = np.unique(np.linspace(0, end - 1, 4000).astype(int))
            axes.plot(shown / scale, rates[shown], color='#1f4e9c', drawstyle='steps-post')
            axes.set(title=title, xlabel=unit, ylim=(0, None))
            axes.ticklabel_format(axis='y', style='sci', scilimits=(-3, 3))
            axes.spines[['top', 'right']].set_visible(False)
        figure.axes[0].set_ylabel('learning rate')
        save_figure(figure, path)


class SamplesAsSeen(list):
    """Samples as the model of a classification config sees them; stands in for a data set.

    Batches pass the preprocessor as in training, which may mix their images and erase from them;
    its normalisation is undone. A sample's labels are those with a share in it, the largest first,
    and its name says the shares.

    Args:
        dataset: The data set with the training pipeline.
        model: The config's model, whose preprocessor augments.
        indices: Indices of the images.
        batch_size: Images of one batch are mixed in the same way.
    """

    def __init__(
        self, dataset: Any, model: nn.Module, indices: Sequence[int], batch_size: int = 4
    ) -> None:
        self.metainfo = dict(dataset.metainfo)
        preprocessor: Any = model.data_preprocessor
        for start in range(0, len(indices), batch_size):
            images = [dataset[index] for index in indices[start : start + batch_size]]
            self._append_batch(preprocessor, preprocessor(pseudo_collate(images), True))

    def _append_batch(self, preprocessor: Any, batch: dict[str, Any]) -> None:
        images = batch['inputs']
        if hasattr(preprocessor, 'mean'):
            images = images * preprocessor.std + preprocessor.mean
        if preprocessor.to_rgb:
            images = images.flip(1)
        for image, sample in zip(images, batch['data_samples'], strict=True):
            scores = sample.get('gt_score')
            if scores is not None:
                labels = scores.argsort(descending=True)[: int((scores > 0).sum())]
                sample.set_gt_label(labels)
                shares = ' + '.join(f'{scores[label]:.2f}' for label in labels)
                sample.set_metainfo(dict(img_path=shares))
            pixels = image.round().clamp(0, 255).to(torch.uint8).cpu()
            self.append(dict(inputs=pixels, data_samples=sample))
