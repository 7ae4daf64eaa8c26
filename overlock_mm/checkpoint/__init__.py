"""Reading checkpoints: official files and ours, safely and with a report."""

from overlock_mm.checkpoint.errors import CheckpointError, CheckpointMismatchError
from overlock_mm.checkpoint.io import (
    SAFE_GLOBALS,
    read_checkpoint,
    read_everywhere,
    state_dict_of,
)
from overlock_mm.checkpoint.loading import (
    check_compatible,
    form_of,
    likely_variant,
    load_pretrained,
)
from overlock_mm.checkpoint.names import TASKS, convert_official
from overlock_mm.checkpoint.official import OfficialModel, convert_file
from overlock_mm.layers.forms import FORMS

__all__ = [
    'FORMS',
    'SAFE_GLOBALS',
    'TASKS',
    'CheckpointError',
    'CheckpointMismatchError',
    'OfficialModel',
    'check_compatible',
    'convert_file',
    'convert_official',
    'form_of',
    'likely_variant',
    'load_pretrained',
    'read_checkpoint',
    'read_everywhere',
    'state_dict_of',
]
