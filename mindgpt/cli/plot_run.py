"""Draw the loss, evaluations, learning rate and gradient norm of training runs from their logs, as a PNG.

python tools/plot_run.py output/                          # -> output/plot.png
python tools/plot_run.py outA outB --output compared.png  # several runs over one another
"""

import argparse
from pathlib import Path

from mindgpt.config.arguments import CheckedParser, path_argument
from mindgpt.config.errors import UserError
from mindgpt.train.plot import PLOT_FILE, plot_runs


def build_parser() -> CheckedParser:
    """The parser of the program."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=path_argument, nargs="+", help="the output folder of a run, which holds log/train.jsonl"
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        help=f"the PNG file; of one run, {PLOT_FILE} in its folder unless you name another",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    if arguments.output is None and len(arguments.folder) > 1:
        raise UserError("several runs are drawn over one another: name the picture with --output, such as compared.png")
    print(plot_runs(arguments.folder, arguments.output or Path(arguments.folder[0]) / PLOT_FILE))
