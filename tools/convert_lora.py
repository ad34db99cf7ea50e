"""LoRA adapters to and from the folders of Hugging Face's library PEFT and the files of TencentPretrain, exactly.

The old name of `mindgpt lora convert`; `mindgpt/cli/convert_lora.py` does the work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.cli.convert_lora import main
from mindgpt.config.errors import run_program

if __name__ == "__main__":
    run_program(main)
