"""Compile the plan of a run for Ascend on any machine: is it legal, memory and collectives of each card, its speed.

The old name of `mindgpt plan --dry_run`; `mindgpt/cli/compile_plan.py` does the work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.cli.compile_plan import main
from mindgpt.config.errors import run_program

if __name__ == "__main__":
    run_program(main)
