"""Which of how many processes this is, as `msrun` tells it by environment variables."""

import os


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK_ID", "0"))


def world_size() -> int:
    """How many processes a cluster around this one has; 1 without a cluster."""
    return int(os.environ.get("MS_WORKER_NUM", "1"))


def say(message: str) -> None:
    """Print a line for the person, once: rank 0 speaks for all."""
    if rank() == 0:
        print(message, flush=True)
