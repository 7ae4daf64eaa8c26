"""What ``--tier`` selects on a GPU, by the minutes that it may take."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar('T')


@dataclass(frozen=True)
class Tier:
    """A selection, to which those before it belong too.

    Attributes:
        minutes: For operators and networks together.
        operators: Regular expression for ``CASE DTYPE``.
        networks: Regular expression for ``NETWORK CASE``.
        operator_budget: Seconds for each time of an operator.
        network_budget: Seconds for each time of a network.
        says: What it holds, for the help.
    """

    minutes: int
    operators: str
    networks: str
    operator_budget: float
    network_budget: float
    says: str

    def seconds(self, share: float) -> float:
        """The share of its minutes."""
        return 60 * self.minutes * share


#: Shares of a tier's minutes.
OPERATORS, NETWORKS = 0.4, 0.6
#: Seconds that a cell may take, compilation included.
CELL = 150.0
TIERS = {
    tier.minutes: tier
    for tier in (
        Tier(
            3,
            r'^(contmix-b2-g8-c16-50x80-k13|contmix-b64-g8-c16-14x14-k13|neighborhood_aggregate.*'
            r'|depthwise_train-b64-c64-56x56-k17|depthwise_mean-b8-c64-56x56-k17'
            r'|depthwise_mlp-b8-c256-56x56-k3) bfloat16$',
            r'^(OverLoCK-XT|ConvNeXt-T) .*-224x224$',
            0.1,
            0.3,
            'bfloat16: ContMix of OverLoCK-T with K 13 at 800 x 1280 and at 224 x 224, the '
            'aggregation, three depthwise cases; OverLoCK-XT and ConvNeXt-T at 224 x 224',
        ),
        Tier(
            8,
            r'^(contmix-b(2|64)-g(8|16)-c16-(50x80|25x40|14x14|7x7)-k(13|7|5)'
            r'|depthwise_.*-b(8|64)-.*) bfloat16$|^contmix-b2-g8-c16-50x80-k13 float32$',
            r'^(OverLoCK-(XT|T)|ConvNeXt-(T|B)) ',
            0.2,
            0.5,
            'adds: all ContMix calls of OverLoCK-T at these sizes, one in float32, all depthwise '
            'cases of batch 8 and of training; OverLoCK-T, ConvNeXt-B and images of 800 x 1280',
        ),
        Tier(30, '', '', 0.3, 1.0, 'adds: all other cases and networks'),
    )
}


def selected(items: Iterable[T], labels: Iterable[str], minutes: int, part: str) -> list[T]:
    """The items of a tier, those of the smallest tier first.

    Args:
        items: All there are.
        labels: One for each, which the tier's expression is searched in.
        minutes: A key of :data:`TIERS`.
        part: 'operators' or 'networks'.
    """
    patterns = [getattr(tier, part) for m, tier in TIERS.items() if m <= minutes]
    ranked = []
    for item, label in zip(items, labels, strict=True):
        rank = next((i for i, pattern in enumerate(patterns) if re.search(pattern, label)), None)
        if rank is not None:
            ranked.append((rank, item))
    return [item for _, item in sorted(ranked, key=lambda pair: pair[0])]


def description() -> str:
    """All tiers, for the help."""
    return ' '.join(f'{tier.minutes} minutes: {tier.says}.' for tier in TIERS.values())
