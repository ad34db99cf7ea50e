"""Text files (.txt, .json, .jsonl, .csv, .tsv) to MindRecord blocks for GPT-2.

The old name of `mindgpt prepare text`; `mindgpt/cli/text_to_mindrecord.py` does the work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.cli.text_to_mindrecord import main
from mindgpt.config.errors import run_program

if __name__ == "__main__":
    run_program(main)
