"""Measure mindgpt against Hugging Face transformers; `benchmarks/benchmark.py` is the program.

python tools/benchmark.py --what train eval
"""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "benchmarks" / "benchmark.py"), run_name="__main__")
