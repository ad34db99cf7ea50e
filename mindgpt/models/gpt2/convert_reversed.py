"""MindFormers' program from MindSpore to Hugging Face; the same as `convert_weight.py --reversed`.

python mindgpt/models/gpt2/convert_reversed.py --mindspore_path gpt2.ckpt --torch_path gpt2-hf/
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: import from this checkout, and not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from mindgpt.config.errors import run_program
from mindgpt.models.gpt2 import convert_weight

if __name__ == "__main__":
    run_program(lambda: convert_weight.main(["--reversed", *sys.argv[1:]]))
