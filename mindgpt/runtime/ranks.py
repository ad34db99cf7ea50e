"""The rank and the world size of this process, from the environment variables of the launcher or `msrun`."""

import os

from mindgpt.config.errors import UserError


def rank() -> int:
    """The rank of this process, from 0.

    Raises:
        UserError: RANK_ID is not a number from 0, or not below the number of processes.
    """
    number, size = _number("RANK_ID", default=0, lowest=0), world_size()
    if number >= size:
        processes = f"{size} process{'es' if size > 1 else ''}"
        raise UserError(
            f"the environment variable RANK_ID is {number}, but there {'are' if size > 1 else 'is'} {processes} "
            "(MS_WORKER_NUM). It is left over from another shell, or set by a launcher that mindgpt does not work "
            "with, such as a rank table's. For a run of one process: unset RANK_ID. For several: "
            "scripts/msrun_launcher.sh or MindSpore's msrun, which set both."
        )
    return number


def world_size() -> int:
    """The number of processes of the run, 1 without a launcher; under simulated Ascend, the number of cards.

    Raises:
        UserError: MS_WORKER_NUM is not a number from 1.
    """
    simulated = "MS_SIMULATION_LEVEL" in os.environ
    return _number("RANK_SIZE" if simulated else "MS_WORKER_NUM", default=1, lowest=1)


def say(message: str) -> None:
    """Print a line for the user, on rank 0 only."""
    if rank() == 0:
        print(message, flush=True)


def _number(name: str, default: int, lowest: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or int(text) < lowest:
        raise UserError(
            f"the environment variable {name} is {text!r}; it must be a whole number from {lowest}. "
            f"scripts/msrun_launcher.sh and msrun set it. For a run of one process: unset {name}."
        )
    return int(text)
