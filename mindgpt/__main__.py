"""`python -m mindgpt`, and what `mindgpt launch` starts in each process: the `mindgpt` command."""

import sys
from pathlib import Path

if not __package__:  # run as a script: import from this checkout, and not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from mindgpt.cli.entry import main

if __name__ == "__main__":
    main()
