"""Find the layout of a training on so many Ascend cards: all legal ones by formula, the best compiled to confirm them.

The old name of `mindgpt plan`; `mindgpt/cli/plan_layout.py` does the work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.cli.plan_layout import main
from mindgpt.config.errors import run_program

if __name__ == "__main__":
    run_program(main)
