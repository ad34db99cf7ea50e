"""Draw the loss, evaluations, learning rate and gradient norm of training runs from their logs, as a PNG.

The old name of `mindgpt plot`; `mindgpt/cli/plot_run.py` does the work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.cli.plot_run import main
from mindgpt.config.errors import run_program

if __name__ == "__main__":
    run_program(main)
