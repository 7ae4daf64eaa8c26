"""Parameter groups by setting, not one for each parameter."""

import logging
from typing import Any

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


def merge_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the parameters of groups with the same settings into one group.

    Args:
        groups: Parameter groups as a torch optimizer takes them.

    Returns:
        New groups, in the order in which their settings first occur.
    """
    merged: list[tuple[dict[str, Any], list[nn.Parameter]]] = []
    for group in groups:
        settings = {key: value for key, value in group.items() if key != 'params'}
        for known, parameters in merged:
            if known == settings:
                parameters.extend(group['params'])
                break
        else:
            merged.append((settings, list(group['params'])))
    return [dict(params=parameters, **settings) for settings, parameters in merged]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with one parameter group for all parameters of equal settings.

    mmengine makes a group of each parameter, a thousand for OverLoCK-T, and logs a line or more for
    each. torch updates the tensors of a group together, so that groups of one cost it a launch of
    every kernel for every tensor. Here each group of many is logged in one line.

    Args:
        optim_wrapper_cfg: The same as in mmengine.
        paramwise_cfg: The same as in mmengine.
    """

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = '', **kwargs: Any
    ) -> None:
        """Add the parameters of ``module``, as mmengine does, and merge what is equal."""
        if prefix:  # called by the parent for its children
            super().add_params(params, module, prefix=prefix, **kwargs)
            return
        logger = MMLogger.get_current_instance()
        level = logger.level
        # A line for each parameter, and for each that a head shares among its levels a warning.
        logger.setLevel(max(level, logging.ERROR))
        try:
            super().add_params(params, module, **kwargs)
        finally:
            logger.setLevel(level)
        self.adjust(params, module)
        params[:] = merge_groups(params)
        for group in params:
            logger.info(
                f'Parameter group: {len(group["params"])} tensors, '
                f'lr {group.get("lr", self.base_lr):.4g}, '
                f'weight decay {group.get("weight_decay", self.base_wd or 0):.4g}'
            )

    def adjust(self, params: list[dict[str, Any]], module: nn.Module) -> None:
        """Change the groups in place while each holds one parameter; for children of this class.

        Args:
            params: Groups, as mmengine has made them.
            module: The model.
        """
