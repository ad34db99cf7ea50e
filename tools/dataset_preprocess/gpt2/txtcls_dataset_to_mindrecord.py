"""Labelled texts to MindRecord rows for text classification with GPT-2.

The old name of `mindgpt prepare classification`; `mindgpt/cli/txtcls_dataset_to_mindrecord.py` does the work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.cli.txtcls_dataset_to_mindrecord import main
from mindgpt.config.errors import run_program

if __name__ == "__main__":
    run_program(main)
