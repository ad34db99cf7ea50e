"""Compile the plan of a run for Ascend on any machine: is it legal, memory and collectives of each card, its speed.

    python tools/dry_run.py --config configs/gpt2/pretrain_gpt2_13b_fp16.yaml --rank_size 8
    python tools/dry_run.py --config X.yaml --rank_size 16 --options parallel_config.pipeline_stage=2 --batch_size 4

Every other flag is one of run_mindformer.py. No data and no weights are read, and nothing is written. Exit status: 0,
or 2 with what is wrong with the configuration or its layout, or 3 if it is legal and does not fit the cards.
"""

import sys

from mindgpt.config.arguments import CheckedParser, file_argument
from mindgpt.config.command_line import config_from_command_line
from mindgpt.config.errors import UserError
from mindgpt.config.hardware import load_hardware
from mindgpt.config.shipped import configs_folder
from mindgpt.planning.dry_run import dry_run, report, shortfall

DOES_NOT_FIT = 3  # the status of a plan that is legal and too large for the cards
HARDWARE = configs_folder() / "hardware" / "atlas_800t_a2.yaml"


def build_parser() -> CheckedParser:
    """The parser of the program."""
    parser = CheckedParser.documented(__doc__)
    parser.add_argument("--rank_size", metavar="N", help="how many cards (required)")
    parser.add_argument(
        "--hardware", type=file_argument, default=HARDWARE, metavar="FILE", help="the kind of card (%(default)s)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    given, flags_of_run = build_parser().parse_known_args(argv)
    cards = _number(given.rank_size)
    command = config_from_command_line(flags_of_run)
    hardware = load_hardware(given.hardware)
    for note in command.notes:
        print(note)
    plan = dry_run(command.config, cards, hardware)
    for line in report(plan):
        print(line)
    if problem := shortfall(plan):
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(DOES_NOT_FIT)


def _number(text: str | None) -> int:
    if text is None:
        raise UserError("command line: --rank_size N is required: on how many cards?")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"command line: --rank_size must be a whole number from 1, not {text!r}")
    return int(text)
