"""Find the layout of a training on so many Ascend cards: all legal ones by formula, the best compiled to confirm them.

    python tools/plan.py --config configs/gpt2/pretrain_gpt2_13b_fp16.yaml --rank_size 8 --output plan.yaml
    python tools/plan.py --config X.yaml --rank_size 8,16,32,64 --objective fewest_cards --compile 0
    python tools/plan.py --config X.yaml --rank_size 8 --measured 1180

Every other flag is one of run_mindformer.py. The rows of a step and everything but the layout stay as they are. No card
is needed. --measured is what a run of the configuration's own layout reached, tokens/s of one card: it sets the
hardware's efficiency. Exit status: 0, or 2 with what is wrong, or 3 if no layout fits the cards, with what is short.
"""

import sys

from mindgpt.config.arguments import CheckedParser, file_argument
from mindgpt.config.command_line import config_from_command_line
from mindgpt.config.errors import UserError
from mindgpt.config.hardware import load_hardware
from mindgpt.config.shipped import configs_folder
from mindgpt.planning.layout_search import MOST_MICRO_BATCHES
from mindgpt.planning.planner import NothingFits, plan_layout

NOTHING_FITS = 3
HARDWARE = configs_folder() / "hardware" / "atlas_800t_a2.yaml"


def build_parser() -> CheckedParser:
    """The parser of the program."""
    parser = CheckedParser.documented(__doc__)
    parser.add_argument("--rank_size", metavar="N[,N...]", help="how many cards (required); several: fewest_cards")
    parser.add_argument(
        "--hardware", type=file_argument, default=HARDWARE, metavar="FILE", help="the kind of card (%(default)s)"
    )
    parser.add_argument(
        "--objective",
        choices=("tokens_per_second", "fewest_cards"),
        default="tokens_per_second",
        help="the fastest layout, or the fewest of the numbers of cards that fit (%(default)s)",
    )
    parser.add_argument("--rows", metavar="N", help="rows of a step (those of the configuration)")
    parser.add_argument(
        "--usable_memory", default="0.85", metavar="F", help="the fraction of a card's memory to fill (%(default)s)"
    )
    parser.add_argument(
        "--micro_batches",
        default=str(MOST_MICRO_BATCHES),
        metavar="N",
        help="the most of a sharded model in a step, whose graph has each of them (%(default)s)",
    )
    parser.add_argument("--measured", metavar="TOKENS_PER_S", help="of a run of the configuration's own layout")
    parser.add_argument("--top", default="10", metavar="N", help="layouts in the table (%(default)s)")
    parser.add_argument("--compile", default="1", metavar="N", help="how many to compile, 0 for none (%(default)s)")
    parser.add_argument("--output", type=file_argument, metavar="FILE", help="a YAML with the chosen layout")
    return parser


def main(argv: list[str] | None = None) -> None:
    given, flags_of_run = build_parser().parse_known_args(argv)
    if given.rank_size is None:
        raise UserError("command line: --rank_size N is required: on how many cards?")
    if given.output is not None and given.output.is_dir():
        raise UserError(f"command line: --output: it is a folder, and must be the name of a file: {given.output}")
    counts = [_number("--rank_size", text) for text in given.rank_size.split(",")]
    settings = {
        "objective": given.objective,
        "rows": None if given.rows is None else _number("--rows", given.rows),
        "usable": _decimal("--usable_memory", given.usable_memory, at_most=1),
        "most_batches": _number("--micro_batches", given.micro_batches),
        "measured": None if given.measured is None else _decimal("--measured", given.measured),
        "shown": _number("--top", given.top),
        "compiled": _number("--compile", given.compile, least=0),
        "output": given.output,
    }
    command = config_from_command_line(flags_of_run)
    hardware = load_hardware(given.hardware)
    for note in command.notes:
        print(note)
    try:
        for line in plan_layout(command.config, counts, hardware, **settings):
            print(line, flush=True)
    except NothingFits as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(NOTHING_FITS)


def _number(flag: str, text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"command line: {flag} must be a whole number from {least}, not {text!r}")
    return int(text)


def _decimal(flag: str, text: str, at_most: float = float("inf")) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= at_most:
        limit = f" and at most {at_most:g}" if at_most < float("inf") else ""
        raise UserError(f"command line: {flag} must be a number above 0{limit}, not {text!r}")
    return value
