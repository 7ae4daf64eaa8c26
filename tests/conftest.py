"""What mmengine keeps for a whole process must not pass from one test to the next."""

import pytest
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer


@pytest.fixture(autouse=True)
def fresh_globals_of_mmengine():
    """Each test starts without a default scope and a current visualizer."""
    DefaultScope._instance_dict.clear()
    Visualizer._instance_dict.clear()
    yield
