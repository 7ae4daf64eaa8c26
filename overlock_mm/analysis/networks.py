"""Networks for analysis: building from a config, checked loading, and stages by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import Tensor, nn

from overlock_mm.checkpoint import (
    check_compatible,
    load_pretrained,
    read_checkpoint,
)
from overlock_mm.models.arch import STAGE_BLOCKS, STAGES
from overlock_mm.models.overlock import OverLoCK
from overlock_mm.utils.config import load_config

_META_KEYS = ('classes', 'palette')


@dataclass(frozen=True)
class Network:
    """A model for analysis, in evaluation mode.

    Args:
        name: Identifies the network: the stem of its config file.
        cfg: Its config.
        model: Its parameters ask for no gradients.
        classes: Names of the classes, as far as checkpoint or config give them.
    """

    name: str
    cfg: Config
    model: nn.Module
    classes: tuple[str, ...] = ()

    @property
    def backbone(self) -> nn.Module:
        """The model's backbone."""
        return self.model.backbone  # type: ignore[return-value]


def load_network(
    config: str | Path,
    checkpoint: str | Path | None = None,
    backbone_only: bool = False,
    device: str | torch.device = 'cpu',
) -> Network:
    """Build the model of a config file and load a checkpoint into it.

    Args:
        config: A config file of any library whose models are in mmengine's registries.
        checkpoint: Weights; None leaves those of the initialisation, drawn from seed 0.
        backbone_only: Load only the backbone, from a checkpoint of any task, official or ours.
            Otherwise the checkpoint must have just the tensors of the whole model.
        device: Where to put the model.

    Raises:
        FileNotFoundError: There is no such config or checkpoint.
        ValueError: The config has no model with a backbone.
        CheckpointError: The checkpoint cannot be read.
        CheckpointMismatchError: It belongs to another model.
    """
    cfg = load_config(config)
    if 'backbone' not in cfg.get('model', {}):
        raise ValueError(f'{config} has no model with a backbone to analyse.')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
    meta: dict[str, Any] = {}
    if checkpoint is not None and backbone_only:
        load_pretrained(model.backbone, checkpoint)
    elif checkpoint is not None:
        content = read_checkpoint(checkpoint)
        weights = content['state_dict']
        check_compatible(model, weights, str(checkpoint))
        model.load_state_dict(weights)
        meta = content.get('meta') or {}
    # Only gradients of images and activations are used.
    model.eval().requires_grad_(False).to(device)
    return Network(Path(config).stem, cfg, model, tuple(dataset_meta(cfg, meta).get('classes', ())))


def dataset_meta(cfg: Config, checkpoint_meta: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of the classes: that of the checkpoint, else of the config's data set.

    Args:
        cfg: The model's config.
        checkpoint_meta: The entry ``meta`` of the checkpoint file.

    Returns:
        ``classes`` and ``palette``, as far as there are any.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    stored = checkpoint_meta.get('dataset_meta') or dataset.get('metainfo') or {}
    if not stored and 'type' in dataset:
        with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            stored = getattr(registry.get(dataset['type']), 'METAINFO', {})
    # Older files have names in capitals.
    return {key.lower(): value for key, value in stored.items() if key.lower() in _META_KEYS}


def output_names(backbone: nn.Module) -> list[str]:
    """Return names of a backbone's outputs: OverLoCK's stages, then those of ``forward``."""
    stages = list(STAGES) if isinstance(backbone, OverLoCK) else []
    returned = len(getattr(backbone, 'out_indices', (0,)))
    return stages + [f'out{i}' for i in range(returned)]


def output_module(backbone: nn.Module, name: str) -> nn.Module:
    """Return the module whose output has a name.

    Args:
        backbone: It may be any; a name ``out0``, ``out1``, ... adds a hook to it, which leaves its
            results as they are.
        name: One of :func:`output_names`, or the path of a module within the backbone, such as
            ``'layer4.1'``. An OverLoCK's stages are taken before their LayerNorm; those of
            Focus-Net hold the features and, behind them, the context.

    Raises:
        ValueError: There is no such output; the message lists those that exist.
    """
    if isinstance(backbone, OverLoCK) and name in STAGES:
        return _stage_module(backbone, name)
    names = output_names(backbone)
    if re.fullmatch(r'out\d+', name) and name in names:
        return _returned_output(backbone, int(name.removeprefix('out')))
    modules = {path: module for path, module in backbone.named_modules() if path}
    if name in modules:
        return modules[name]
    near = difflib.get_close_matches(name, modules, n=3)
    inner = ', '.join(near or list(dict(backbone.named_children())))
    raise ValueError(
        f'{type(backbone).__name__} has no output {name!r}. It has {", ".join(names)}; a module '
        f'within it may be named, too, such as {inner}.'
    )


def check_spatial(network: Network, names: Sequence[str], image: Tensor) -> None:
    """Run the backbone once and demand a map [B, C, H, W] of each output.

    Args:
        network: The backbone and its name.
        names: Names of outputs.
        image: [B, 3, H, W].

    Raises:
        ValueError: A name does not exist, is never reached or has no spatial positions.
    """
    outputs: dict[str, Any] = {}
    hooks = [
        output_module(network.backbone, name).register_forward_hook(
            lambda module, inputs, output, name=name: outputs.update({name: output})
        )
        for name in names
    ]
    try:
        with torch.no_grad():
            network.backbone(image)
    finally:
        for hook in hooks:
            hook.remove()
    for name in names:
        if name not in outputs:
            raise ValueError(f'The forward pass of {network.name} never reaches {name!r}.')
        output = outputs[name]
        if isinstance(output, Tensor) and output.dim() == 4:
            continue
        is_tensor = isinstance(output, Tensor)
        what = list(output.shape) if is_tensor else f'a {type(output).__name__}'
        raise ValueError(
            f'The output {name!r} of {network.name} has no spatial positions: it is {what}, not '
            f'[B, C, H, W]. Others are {", ".join(output_names(network.backbone))}, or a module '
            'within the backbone.'
        )


def _stage_module(backbone: OverLoCK, name: str) -> nn.Module:
    blocks = backbone.get_submodule(STAGE_BLOCKS[name])
    # The Focus-Net calls its blocks one by one, and never the list that holds them.
    return blocks[-1] if isinstance(blocks, nn.ModuleList) else blocks


def _returned_output(backbone: nn.Module, index: int) -> nn.Module:
    """Return an identity through which one of the backbone's results passes, for others to hook."""
    tap = nn.Identity()

    def pass_through(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return tap(output)
        return tuple(tap(x) if i == index else x for i, x in enumerate(output))

    backbone.register_forward_hook(pass_through)
    return tap
