"""What mmengine keeps for a whole process must not pass from one test to the next.

And which of the two OpenMMLab stacks this is.
"""

from importlib import metadata

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer


def pytest_collection_modifyitems(items):
    """Of the golden cases, those of the smallest variant are the quick ones."""
    for item in items:
        case = item.callspec.params.get('case') if hasattr(item, 'callspec') else None
        if isinstance(case, dict) and case.get('variant') not in (None, 'xt'):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def fresh_globals_of_mmengine():
    """Each test starts without a default scope, a current visualizer and loggers."""
    forget_globals_of_mmengine()


def forget_globals_of_mmengine():
    """Let the next run be as if it were the first of its process.

    A run's logger is named by the second in which it starts: two tests within one second would
    share it, and the second would write to the captured streams of the first.
    """
    for owner in (DefaultScope, MMLogger, Visualizer):
        owner._instance_dict.clear()


def maintained_stack():
    """Whether mmengine is the maintained distribution, and not the original."""
    return any(found.name == 'onedl-mmengine' for found in metadata.distributions())
