"""Errors of checkpoints."""


class CheckpointError(ValueError):
    """The file cannot be read as a checkpoint."""


class CheckpointMismatchError(CheckpointError):
    """The checkpoint belongs to another network."""
