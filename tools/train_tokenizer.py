"""Learn a vocabulary from text files: byte-level BPE, GPT-2's kind; WordPiece, the kind of Chinese GPT-2 models; or
byte-level BPE of jieba's words, the kind of ModelScope's Chinese GPT-3.

The old name of `mindgpt tokenizer`; `mindgpt/cli/train_tokenizer.py` does the work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.cli.train_tokenizer import main
from mindgpt.config.errors import run_program

if __name__ == "__main__":
    run_program(main)
