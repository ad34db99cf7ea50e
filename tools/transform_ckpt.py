"""Merge the checkpoint shards of a parallel run into one file, or shard them for another layout. Needs no NPU.

The old name of `mindgpt merge`; `mindgpt/cli/transform_ckpt.py` does the work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.cli.transform_ckpt import main
from mindgpt.config.errors import run_program

if __name__ == "__main__":
    run_program(main)
