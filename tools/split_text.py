"""Split text into train.txt and valid.txt, the end of the text, to validate a model on.

The old name of `mindgpt prepare split`; `mindgpt/cli/split_text.py` does the work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.cli.split_text import main
from mindgpt.config.errors import run_program

if __name__ == "__main__":
    run_program(main)
