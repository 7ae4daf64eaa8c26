"""Training with parameters, gradients and optimizer state sharded across processes (FSDP)."""

from __future__ import annotations

from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.dist import is_main_process
from mmengine.registry import STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from overlock_mm.layers.recompute import RecomputableBlock
from overlock_mm.utils.files import replacing


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Return a policy for FSDP: each block of the backbone is a unit, the rest another one.

    Heads must not be units of their own: detectors call other methods of them than ``forward``,
    and FSDP gathers the parameters of a unit only in its ``forward``.
    """
    return recurse or isinstance(module, RecomputableBlock)


@STRATEGIES.register_module()
class BlockFSDPStrategy(FSDPStrategy):
    """mmengine's ``FSDPStrategy`` for models with this backbone.

    It shards by blocks of the backbone and also runs on CPUs. Checkpoints are unsharded and written
    atomically, so that the test tool and runs without sharding read them like any other.

    Args:
        model_wrapper: Settings for ``MMFullyShardedDataParallel``.
        **kwargs: Arguments of ``FSDPStrategy``, except ``state_dict_cfg``.
    """

    def __init__(self, *, model_wrapper: dict | None = None, **kwargs: Any) -> None:
        on_gpu = torch.cuda.is_available()
        wrapper = dict(
            type='MMFullyShardedDataParallel', auto_wrap_policy=wrap_blocks, **(model_wrapper or {})
        )
        if not on_gpu:
            # mmengine numbers the GPUs like the processes.
            wrapper.setdefault('device_id', 'cpu')
        # Moving a CPU tensor to the CPU makes no copy, and FSDP frees the original.
        gathered = dict(rank0_only=True, offload_to_cpu=on_gpu)
        super().__init__(
            model_wrapper=wrapper,
            state_dict_cfg=dict(
                state_dict_type='FULL_STATE_DICT',
                state_dict_config=dict(type='FullStateDictConfig', **gathered),
                optim_state_dict_config=dict(type='FullOptimStateDictConfig', **gathered),
            ),
            **kwargs,
        )

    def build_optim_wrapper(self, optim_wrapper: Any, model: nn.Module | None = None) -> Any:
        """Build it as mmengine does; mixed precision with a scale that all processes share."""
        if isinstance(optim_wrapper, dict) and optim_wrapper.get('type') == 'AmpOptimWrapper':
            optim_wrapper = {'use_fsdp': True, **optim_wrapper}
        return super().build_optim_wrapper(optim_wrapper, model)

    def save_checkpoint(self, filename: str, **kwargs: Any) -> None:
        """Gather the state from all processes; the first one writes it."""
        if not is_main_process():
            super().save_checkpoint(filename, **kwargs)
            return
        with replacing(filename) as partial:
            super().save_checkpoint(str(partial), **kwargs)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Distribute a whole optimizer state to the processes."""
        # As keywords, because torch 2.1 changed the order in which mmengine passes them.
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(
                model=self.model,
                optim=self.optim_wrapper.optimizer,
                optim_state_dict=state_dict,
            )
        )
