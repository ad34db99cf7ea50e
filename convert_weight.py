"""MindFormers' one program for converting weights, for GPT-2: `mindgpt/models/gpt2/convert_weight.py` does the work.

python convert_weight.py --model gpt2 --input_path gpt2-hf/ --output_path gpt2.ckpt
python convert_weight.py --model gpt2 --reversed --input_path gpt2.ckpt --output_path gpt2-hf/
"""

import argparse

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.config.arguments import CheckedParser
from mindgpt.config.errors import UserError, run_program
from mindgpt.config.section import nearest
from mindgpt.models.gpt2 import convert_weight

MODELS = ("gpt", "gpt2")
DTYPES = {"fp32": "float32", "fp16": "float16", "float32": "float32", "float16": "float16"}


def main(arguments: list[str] | None = None) -> None:
    """Run the command; raises UserError if it cannot."""
    parser = CheckedParser.documented(__doc__)
    add = parser.add_argument
    add("--model", required=True, help="gpt2 (MindFormers also wrote gpt)")
    add("--input_path", required=True, metavar="PATH", help="a folder or file of Hugging Face; with --reversed a .ckpt")
    add("--output_path", required=True, metavar="PATH", help="a .ckpt; with --reversed a folder or file")
    add("--reversed", action="store_true", help="from MindSpore to Hugging Face")
    add("--dtype", help="fp32 or fp16, of the weights written (fp32)")
    add("--layers", type=int, metavar="N", help="refuse weights that do not have N layers")
    add("--config", help="config file, folder or preset (gpt2_xl), instead of the config.json beside the weights")
    for flag in ("--qkv_concat", "--is_lora"):
        add(flag, default="False", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.model.lower() not in MODELS:
        raise UserError(f"--model {given.model}: mindgpt has GPT-2 only; {nearest(given.model, MODELS)}")
    for flag in ("qkv_concat", "is_lora"):
        if getattr(given, flag).lower() != "false":
            raise UserError(f"--{flag}: only False is allowed; LoRA's weights are converted by tools/convert_lora.py")
    if given.dtype not in (None, *DTYPES):
        raise UserError(f"--dtype {given.dtype}: must be fp32 or fp16; a run computes in bfloat16 by compute_dtype")
    torch_path, mindspore_path = given.input_path, given.output_path
    if given.reversed:
        torch_path, mindspore_path = mindspore_path, torch_path
    words = ["--torch_path", torch_path, "--mindspore_path", mindspore_path]
    words += ["--reversed"] if given.reversed else []
    for name, value in (("dtype", DTYPES.get(given.dtype)), ("layers", given.layers), ("config", given.config)):
        words += [] if value is None else [f"--{name}", str(value)]
    convert_weight.main(words)


if __name__ == "__main__":
    run_program(main)
