"""What a run has left."""

import os
from pathlib import Path

from mindgpt.checkpoints.run_folder import checkpoints_in


def last_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """The newest checkpoint of the last run in a folder `checkpoint/rank_<r>`, or of those beside it."""
    return checkpoints_in(folder)[-1]
