"""Convert GPT-2 weights between Hugging Face, MindSpore's `.ckpt` with the names of MindFormers 1.5, UER-py and
TencentPretrain, DeepSpeed's folders among their files, and ModelScope's GPT-3; and those of GPT2_ML, TensorFlow's
checkpoints among them.

    python mindgpt/models/gpt2/convert_weight.py --layers 12 --torch_path gpt2-hf/ --mindspore_path gpt2.ckpt
    python mindgpt/models/gpt2/convert_weight.py --reversed --mindspore_path gpt2.ckpt --torch_path gpt2-hf/

Any direction, UER-py's .bin and DeepSpeed's folder to a .ckpt, a Hugging Face folder, and a .bin of UER-py:

    python mindgpt/models/gpt2/convert_weight.py --input_path uer.bin --vocab vocab.txt --output_path gpt2.ckpt
    python mindgpt/models/gpt2/convert_weight.py --input_path models/zero_run/ --output_path gpt2-hf/
    python mindgpt/models/gpt2/convert_weight.py --input_path gpt2.ckpt --target_format uer --output_path back.bin

GPT2_ML's TensorFlow checkpoint to a .ckpt, a folder like Hugging Face's, and a folder of its PyTorch port:

    python mindgpt/models/gpt2/convert_weight.py --input_path gpt2/model.ckpt-100000 --output_path ml.ckpt
    python mindgpt/models/gpt2/convert_weight.py --input_path gpt2/model.ckpt-100000 --output_path ml-hf/
    python mindgpt/models/gpt2/convert_weight.py --input_path ml.ckpt --target_format gpt2_ml_torch --output_path port/

ModelScope's GPT-3, whose weights may be sharded over tensor-parallel ranks, to anything else and back:

    python mindgpt/models/gpt2/convert_weight.py --input_path nlp_gpt3_text-generation_2.7B/ --output_path gpt3.ckpt
    python mindgpt/models/gpt2/convert_weight.py --input_path nlp_gpt3_text-generation_2.7B/ --output_path gpt3-hf/
    python mindgpt/models/gpt2/convert_weight.py --input_path gpt3.ckpt --target_format modelscope --tensor_parallel 4 \
        --output_path gpt3-tp4/

What the source is follows from its files, and the target from its name: a .ckpt, else Hugging Face's. UER-py computes
another layer norm than GPT-2. --layer_norm uer keeps its arithmetic (the default for a .ckpt); copy takes gamma as it
is and the standard arithmetic (as UER-py's own converters; the default for Hugging Face); folded takes the standard
arithmetic with gamma scaled so that the outputs stay the same.

--vocab_size 50304 adds rows of padding to a token table of 50257, by which cards can share it, and --vocab_size 50257
removes them. Only padding is removed.

A folder for ModelScope holds model/mp_rank_00_model_states.pt and so on, as 1.3B and up do. A model with the exact gelu
is written as base and large are, one pytorch_model.bin, unless --tensor_parallel is given.

`mindgpt/checkpoints/conversion.py` does the work; the program lies where MindFormers has it.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: import from this checkout, and not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.checkpoints.conversion import TARGET_FORMATS, convert
from mindgpt.checkpoints.conversion_source import SOURCE_FORMATS, ConversionOptions
from mindgpt.checkpoints.layer_norm_conversion import CONVERSIONS
from mindgpt.config.arguments import CheckedParser, file_argument, path_argument
from mindgpt.config.errors import UserError, run_program


def build_parser() -> CheckedParser:
    """The parser of the program."""
    parser = CheckedParser.documented(__doc__)
    add = parser.add_argument
    add("--torch_path", type=file_argument, metavar="PATH", help="a folder, or a .safetensors or .bin file")
    add(
        "--mindspore_path",
        type=file_argument,
        metavar="PATH",
        help="a .ckpt; to read also a run's checkpoint folder",
    )
    add("--reversed", action="store_true", help="write --torch_path from --mindspore_path")
    add("--input_path", type=file_argument, metavar="PATH", help="instead of these: weights of any kind")
    add("--output_path", type=file_argument, metavar="PATH", help="where to write them")
    add("--source_format", choices=SOURCE_FORMATS, default="auto", help="refuse weights of other kinds (%(default)s)")
    add("--target_format", choices=TARGET_FORMATS, help="mindspore for a .ckpt, else huggingface")
    add("--layer_norm", choices=CONVERSIONS, help="how layer norms of UER-py are converted, see below")
    add("--layers", type=int, metavar="N", help="refuse weights that do not have N layers")
    add(
        "--dtype",
        choices=("float32", "float16"),
        help="of the weights written (float32; for modelscope that of the source)",
    )
    add("--tensor_parallel", type=int, metavar="N", help="shard over N ranks, with --target_format modelscope (1)")
    add(
        "--vocab_size",
        type=int,
        metavar="ROWS",
        help="rows of the token table: more add padding of zeros, fewer remove padding (as many as there are)",
    )
    add(
        "--config",
        type=path_argument,
        help="config file, of UER-py, GPT2_ML or ModelScope too, folder or preset (gpt2_xl), in place of that beside "
        "the weights",
    )
    add("--vocab", type=file_argument, metavar="PATH", help="the vocab.txt, if it does not lie with the weights")
    add("--num_heads", "--heads_num", type=int, metavar="N", help="for weights of UER-py or GPT2_ML without config")
    return parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 and a usage line if it is wrong."""
    return build_parser().parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; raises UserError if it cannot."""
    given = parse_arguments(arguments)
    source, target = _paths(given)
    options = ConversionOptions(
        layers=given.layers,
        dtype=given.dtype,
        config=given.config,
        vocabulary=given.vocab,
        num_heads=given.num_heads,
        layer_norm=given.layer_norm,
        source_format=given.source_format,
        tensor_parallel=given.tensor_parallel,
        vocab_size=given.vocab_size,
    )
    target_format = given.target_format
    if given.input_path is None and not given.reversed:
        target_format = target_format or "mindspore"
    convert(source, target, target_format or ("huggingface" if given.reversed else None), options)


def _paths(given: argparse.Namespace) -> tuple[Path, Path]:
    """What to read and what to write."""
    old, new = (given.torch_path, given.mindspore_path), (given.input_path, given.output_path)
    if all(old) and not any(new):
        if given.target_format is not None and (given.target_format == "mindspore") == given.reversed:
            raise UserError(
                f"--target_format {given.target_format}: --mindspore_path is what is "
                f"{'read' if given.reversed else 'written'} here. Use --reversed, or --input_path and --output_path."
            )
        return old[::-1] if given.reversed else old
    if all(new) and not any(old):
        if given.reversed:
            raise UserError("--reversed is for --torch_path and --mindspore_path; --output_path is always written.")
        return new
    raise UserError(
        "command line: give --torch_path and --mindspore_path, or --input_path and --output_path\n"
        "convert_weight.py -h lists the flags"
    )


if __name__ == "__main__":
    run_program(main)
