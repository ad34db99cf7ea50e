"""Draw the loss, evaluations, learning rate and gradient norm of training runs from their logs, as a PNG.

python tools/plot_run.py output/                          # -> output/plot.png
python tools/plot_run.py outA outB --output compared.png  # several runs over one another
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.config.arguments import CheckedParser, path_argument
from mindgpt.config.errors import UserError, run_program
from mindgpt.train.plot import PLOT_FILE, plot_runs


def main() -> None:
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=path_argument, nargs="+", help="the output folder of a run, which holds log/train.jsonl"
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        help=f"the PNG file; of one run, {PLOT_FILE} in its folder unless you name another",
    )
    arguments = parser.parse_args()
    if arguments.output is None and len(arguments.folder) > 1:
        raise UserError("several runs are drawn over one another: name the picture with --output, such as compared.png")
    print(plot_runs(arguments.folder, arguments.output or Path(arguments.folder[0]) / PLOT_FILE))


if __name__ == "__main__":
    run_program(main)
