"""States of the random generators of a process, as checkpoints keep them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_states(cuda: bool = True) -> dict[str, Any]:
    """States of the generators of Python, NumPy and PyTorch.

    Args:
        cuda: Whether to include the generator of this process's CUDA device, if it has one.

    Returns:
        Tensors and numbers only, so that a checkpoint that holds them is read without executing
        anything.
    """
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        'python': (version, torch.tensor(words), gauss),
        'numpy': (torch.tensor(np.asarray(keys, np.int64)), position, has_gauss, cached),
        'torch': torch.get_rng_state(),
    }
    if cuda and torch.cuda.is_available():
        states['cuda'] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Set the generators to what :func:`random_states` returned."""
    version, words, gauss = states['python']
    random.setstate((version, tuple(words.tolist()), gauss))
    keys, *rest = states['numpy']
    np.random.set_state(('MT19937', keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states['torch'].cpu())
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators on the CPU within a block, and leave them after it as they were."""
    # Not random_states: to turn 625 words into a tensor and back takes ten times as long.
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds the GPUs too
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)
