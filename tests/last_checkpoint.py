"""The newest checkpoint of a run."""

from pathlib import Path

from mindgpt.checkpoints.run_folder import checkpoints_in


def last_checkpoint(folder) -> Path:
    """The newest checkpoint in a folder `rank_<r>`."""
    return checkpoints_in(folder)[-1]
