"""`python -m mindgpt.serving`: the same as `mindgpt serve`."""

from mindgpt.config.errors import run_program
from mindgpt.serving.command import main

if __name__ == "__main__":
    run_program(main)
