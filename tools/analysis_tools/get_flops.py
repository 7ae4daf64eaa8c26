"""Count the parameters and multiply-adds of a config's model, in each of its forms.

python tools/analysis_tools/get_flops.py configs/classification/overlock_t.py --shape 224 224
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from overlock_mm.analysis import Complexity, measure_complexity
from overlock_mm.cli.arguments import readable_errors
from overlock_mm.models.overlock import MIN_IMAGE_SIZE
from overlock_mm.utils.config import load_config

NOTES = """\
Multiply-adds per image: a multiplication and its addition count as one. Convolutions, linear layers
and ContMix are counted; norms, activations, pooling, resizing and softmax are not.
The published figures (2.6, 5.5, 9.7 and 16.7 G for XT, T, S and B at 224 x 224) lie between the
convolutions and the total of the reparameterized form, 2 to 4 % below the total; the difference
depends on how much of ContMix is counted. In the reparameterized form, the published one, only the
dilated branches are folded; in the fused form, all that is constant in evaluation."""
SCOPES = {
    'mmpretrain': 'Backbone and main classifier; the parameters of the training form include the '
    'auxiliary classifier, which is used only in training.',
    'mmseg': 'Backbone and decode head; the parameters include the auxiliary head, which is used '
    'only in training.',
    'mmdet': 'Backbone, neck and region proposals; the cost of the following heads depends on the '
    'number of proposals, so only their parameters are counted.',
    'one stage': 'Backbone, neck and the head at every location; of what follows the selection of '
    'objects only the parameters are counted.',
    'features': 'Backbone and neck, if there is one; the head also reads its samples, so only its '
    'parameters are counted.',
}


def scope_of(cfg: Config, model: nn.Module) -> str:
    """Key of ``SCOPES``: how much of the model does not depend on the content of the image."""
    if cfg.default_scope == 'mmdet' and not hasattr(model, 'rpn_head'):
        # Heads of queries are called with more than the maps.
        dense = getattr(getattr(model, 'bbox_head', None), 'prior_generator', None)
        return 'features' if dense is None else 'one stage'
    head = getattr(model, 'decode_head', None)
    if hasattr(head, 'transformer_decoder'):  # of Mask2Former
        return 'features'
    return cfg.default_scope


def forward_of(scope: str) -> Callable[[nn.Module, Tensor], Any]:
    """Return what to run of a model for a key of ``SCOPES``."""
    if scope == 'mmdet':
        return lambda model, image: model.rpn_head(model.extract_feat(image))
    if scope == 'one stage':
        return lambda model, image: model.bbox_head(model.extract_feat(image))
    if scope == 'features':
        return lambda model, image: model.extract_feat(image)
    return lambda model, image: model(image, mode='tensor')


def measure(cfg: Config, shape: tuple[int, int]) -> tuple[dict[str, Complexity], str]:
    """Counts by form, and the key of ``SCOPES`` that says of what."""
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    scope = scope_of(cfg, model)
    forward = forward_of(scope)
    forms = {}
    if not model.backbone.deploy:
        forms['training'] = measure_complexity(model, forward, shape)
        model.backbone.reparameterize()
        if hasattr(getattr(model, 'head', None), 'drop_auxiliary'):
            model.head.drop_auxiliary()
        forms['reparameterized'] = measure_complexity(model, forward, shape)
        model.backbone.switch_to_deploy()
    forms['fused'] = measure_complexity(model, forward, shape)
    return forms, scope


def print_table(forms: dict[str, Complexity], shape: tuple[int, int]) -> None:
    """The forms side by side."""
    table = Table(title=f'{shape[0]} x {shape[1]} pixels')
    table.add_column('')
    for form in forms:
        table.add_column(f'{form} form', justify='right')
    rows = {
        'parameters': lambda c: f'{c.parameters:,}',
        'convolutions, linear layers (G)': lambda c: f'{c.dense / 1e9:.2f}',
        'ContMix: affinity (G)': lambda c: f'{c.affinity / 1e9:.2f}',
        'ContMix: kernel projection (G)': lambda c: f'{c.projection / 1e9:.2f}',
        'ContMix: aggregation (G)': lambda c: f'{c.aggregation / 1e9:.2f}',
        'multiply-adds (G)': lambda c: f'{c.total / 1e9:.2f}',
    }
    for title, value in rows.items():
        table.add_row(title, *(value(count) for count in forms.values()))
    Console(highlight=False).print(table)


def main(argv: Sequence[str] | None = None) -> dict[str, Complexity]:
    """Count as the command line says; return the counts by form."""
    parser = argparse.ArgumentParser(description='Count parameters and multiply-adds.')
    parser.add_argument('config')
    parser.add_argument(
        '--shape', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'), help='in pixels'
    )
    args = parser.parse_args(argv)
    with readable_errors():
        cfg = load_config(args.config)
        if min(args.shape) < MIN_IMAGE_SIZE:
            raise ValueError(
                f'--shape must be at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE}, got '
                f'{args.shape[0]} x {args.shape[1]}.'
            )
        forms, scope = measure(cfg, tuple(args.shape))
    print_table(forms, tuple(args.shape))
    print(f'{SCOPES[scope]}\n{NOTES}')
    return forms


if __name__ == '__main__':
    main()
