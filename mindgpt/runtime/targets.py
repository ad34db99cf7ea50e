"""The device that a run is for. Imports no MindSpore."""

import os
from pathlib import Path

from mindgpt.config.errors import UserError


def is_simulated() -> bool:
    """Whether MindSpore compiles for simulated Ascend cards (`MS_SIMULATION_LEVEL`)."""
    return "MS_SIMULATION_LEVEL" in os.environ


def is_ascend_available() -> bool:
    """Whether this machine has an Ascend card, or simulates one."""
    return Path("/dev/davinci_manager").exists() or is_simulated()


def choose_target(wanted: str | None) -> str:
    """The device to run on: the one named in the config, else Ascend if there is one, else CPU.

    Raises:
        UserError: Ascend is named and there is none.
    """
    if wanted == "Ascend" and not is_ascend_available():
        raise UserError(
            "context.device_target is Ascend, but this machine has no Ascend card (no /dev/davinci_manager). To run on "
            "the CPU, add --device_target CPU or take device_target out of the YAML."
        )
    return wanted or ("Ascend" if is_ascend_available() else "CPU")
