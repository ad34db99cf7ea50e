"""The hardware that `tools/dry_run.py` estimates with, described by a small YAML file."""

from pathlib import Path

from pydantic import ValidationError

from mindgpt.config.errors import UserError
from mindgpt.config.section import Count, Fraction, Positive, Section, dotted, problems_of
from mindgpt.config.yaml_file import read_yaml


class Hardware(Section):
    """A kind of device, and the links between devices.

    Attributes:
        name: for messages.
        memory_gib: of one device, GiB.
        fp16_tflops, fp32_tflops: peak of matrix products of one device, in float16 or bfloat16 and in float32, 10^12
            floating-point operations a second.
        cards_per_server: devices in a server.
        server_gb_per_second, network_gb_per_second: what one device can send, and receive at the same time, within its
            server and to other servers, 10^9 bytes a second.
        efficiency: the fraction of the peak that a training step reaches while it computes.
    """

    name: str
    memory_gib: Positive
    fp16_tflops: Positive
    fp32_tflops: Positive
    cards_per_server: Count
    server_gb_per_second: Positive
    network_gb_per_second: Positive
    efficiency: Fraction


def load_hardware(path: str | Path) -> Hardware:
    """Read a description.

    Raises:
        UserError: the file cannot be read, or anything in it is wrong.
    """
    file = read_yaml(path)
    problems = [f"{path}:{line}: {dotted(where)}: {what}" for line, where, what in file.problems]
    hardware = None
    try:
        hardware = Hardware.model_validate(file.value)
    except ValidationError as error:
        problems += [f"{path}:{file.line_of(where)}: {dotted(where)}: {what}" for where, what in problems_of(error)]
    if hardware is None or problems:
        raise UserError("\n".join(problems))
    return hardware
