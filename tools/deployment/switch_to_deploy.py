r"""Fuse the backbone of a trained model for inference.

python tools/deployment/switch_to_deploy.py configs/segmentation/upernet_overlock_t.py \
    work_dirs/.../iter_160000.pth weights/upernet_t.pth

The result is for the config's ``*_deploy`` sibling, or for the config itself with
``--cfg-options model.backbone.deploy=True``, as it prints. Before it is written, outputs of both
forms are compared in float64. Only weights and meta data are kept, in
``weights/upernet_t-<first 8 digits of the file's SHA-256>.pth``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from overlock_mm.checkpoint import check_compatible, form_of, read_checkpoint
from overlock_mm.cli.arguments import readable_errors
from overlock_mm.cli.preflight import check_output_file
from overlock_mm.engine.checkpoint_hook import write_with_hash
from overlock_mm.models import OverLoCK
from overlock_mm.utils.config import load_config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Fuse the backbone of a trained model for inference.'
    )
    parser.add_argument('config', help='config of the training')
    parser.add_argument('source', metavar='IN', help='its checkpoint')
    parser.add_argument('target', metavar='OUT.pth', help='a hash is put before its suffix')
    return parser.parse_args(argv)


def trained_model(config: str, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Return the model of a config with the weights of its checkpoint.

    Raises:
        ValueError: The config is not one of a training with this backbone.
        CheckpointMismatchError: The checkpoint is of another model.
    """
    cfg = load_config(config)
    backbone = cfg.model.get('backbone') or {}
    if backbone.get('deploy'):
        raise ValueError(
            f"{config} builds the fused form. Give the config of the checkpoint's training."
        )
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    if not isinstance(getattr(model, 'backbone', None), OverLoCK):
        raise ValueError(
            f'The backbone of {config} must be an OverLoCK, but is {backbone.get("type")!r}.'
        )
    if form_of(weights) == 'reparameterized':
        model.backbone.reparameterize()
    check_compatible(model, weights, source)
    model.load_state_dict(weights)
    return model


def deploy_sibling(config: Path) -> Path | None:
    """Return the config for the result, if there is one."""
    name = config.stem.removesuffix('_1x').removesuffix('_3x')
    sibling = config.with_name(f'{name}_deploy.py')
    return sibling if sibling.is_file() else None


def main(argv: Sequence[str] | None = None) -> Path:
    """Fuse as the command line says; return the path of the new file."""
    args = parse_args(argv)
    with readable_errors():
        check_output_file(args.target, ('.pth',))
        content = read_checkpoint(args.source)
        weights = content['state_dict']
        model = trained_model(args.config, weights, args.source)
    model.backbone.switch_to_deploy(check=True)
    sibling = deploy_sibling(Path(args.config))
    if sibling is not None and hasattr(model, 'head') and hasattr(model.head, 'drop_auxiliary'):
        model.head.drop_auxiliary()  # those configs have none
    fused = {'state_dict': model.state_dict(), 'meta': content.get('meta', {})}
    with readable_errors():
        path = write_with_hash(fused, Path(args.target))
    print(f'Fused {len(weights)} tensors to {len(fused["state_dict"])}: same outputs in float64.')
    command = f'python tools/test.py {sibling or args.config} {path}'
    if sibling is None:
        command += ' --cfg-options model.backbone.deploy=True'
    print(f'Wrote {path}. Test it with: {command}')
    return path


if __name__ == '__main__':
    main()
