"""Parameter groups by setting, not one for each parameter."""

from typing import Any

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

    mmengine makes a group of each parameter, a thousand for OverLoCK-T. torch updates the tensors
    of a group together, so that groups of one cost it a launch of every kernel for every tensor.

    Args:
        optim_wrapper_cfg: As in mmengine.
        paramwise_cfg: As in mmengine.
    """

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = '', **kwargs: Any
    ) -> None:
        """Add the parameters of ``module``, as mmengine does, and merge what is equal."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if not prefix:  # with one, called by the parent for its children
            params[:] = merge_groups(params)
