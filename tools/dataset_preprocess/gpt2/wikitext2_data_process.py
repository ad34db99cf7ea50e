"""Tokenised WikiText (wiki.train.tokens and the like) to MindRecord blocks for GPT-2.

The old name of `mindgpt prepare wikitext`; `mindgpt/cli/wikitext2_data_process.py` does the work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.cli.wikitext2_data_process import main
from mindgpt.config.errors import run_program

if __name__ == "__main__":
    run_program(main)
