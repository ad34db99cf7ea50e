"""How likely a language model finds texts: log-probability, tokens and perplexity of each, and of every token if asked.

The old name of `mindgpt score`; `mindgpt/cli/score_text.py` does the work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.cli.score_text import main
from mindgpt.config.errors import run_program
from mindgpt.runtime.interrupts import end_on_interrupt

if __name__ == "__main__":
    end_on_interrupt()
    run_program(main)
