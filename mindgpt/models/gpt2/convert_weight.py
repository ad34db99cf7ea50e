"""Convert GPT-2 weights between Hugging Face's files and MindSpore's `.ckpt` with the names of MindFormers 1.5.

    python mindgpt/models/gpt2/convert_weight.py --layers 12 --torch_path gpt2-hf/ --mindspore_path gpt2.ckpt
    python mindgpt/models/gpt2/convert_weight.py --reversed --mindspore_path gpt2.ckpt --torch_path gpt2-hf/

`mindgpt/checkpoints/conversion.py` does the work; the program lies where MindFormers has it.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: import from this checkout, and not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.checkpoints.conversion import convert_to_hugging_face, convert_to_mindspore
from mindgpt.config.arguments import CheckedParser, file_argument, path_argument
from mindgpt.config.errors import run_program


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 and a usage line if it is wrong."""
    parser = CheckedParser.documented(__doc__)
    add = parser.add_argument
    add(
        "--torch_path",
        type=file_argument,
        required=True,
        metavar="PATH",
        help="a folder, or a .safetensors or .bin file",
    )
    add(
        "--mindspore_path",
        type=file_argument,
        required=True,
        metavar="PATH",
        help="a .ckpt; to read also a run's checkpoint folder",
    )
    add("--layers", type=int, metavar="N", help="refuse weights that do not have N layers")
    add("--reversed", action="store_true", help="write --torch_path from --mindspore_path")
    add("--dtype", choices=("float32", "float16"), default="float32", help="of the weights written (%(default)s)")
    add(
        "--config",
        type=path_argument,
        help="config file, folder or preset (gpt2_xl), instead of the config.json beside the weights",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; raises UserError if it cannot."""
    options = parse_arguments(arguments)
    settings = (options.layers, options.dtype, options.config)
    if options.reversed:
        convert_to_hugging_face(options.mindspore_path, options.torch_path, *settings)
    else:
        convert_to_mindspore(options.torch_path, options.mindspore_path, *settings)


if __name__ == "__main__":
    run_program(main)
