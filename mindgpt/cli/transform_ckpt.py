"""Merge the checkpoint shards of a parallel run into one file, or shard them for another layout. Needs no NPU.

    # the newest step of a run, the weights alone -> merged/rank_0/gpt2_0.ckpt
    python tools/transform_ckpt.py --src_ckpt_dir output/checkpoint --src_ckpt_strategy output/strategy \\
        --dst_ckpt_dir merged --prefix gpt2_
    # for the layout that other strategy files describe, with all that a run needs to go on
    python tools/transform_ckpt.py --src_ckpt_dir output/checkpoint --dst_ckpt_strategy other/strategy \\
        --dst_ckpt_dir resharded
    # without the padding of the vocabulary
    python tools/transform_ckpt.py --src_ckpt_dir output/checkpoint --dst_ckpt_dir merged --vocab_size 50257
    # one whole file, sharded for a layout
    python tools/transform_ckpt.py --src_ckpt_dir gpt2.ckpt --dst_ckpt_strategy other/strategy --dst_ckpt_dir sharded

The result is <dst_ckpt_dir>/rank_<r>/<prefix><r>.ckpt, with the config.json of the source beside it. One tensor is in
memory at a time. The sources are only read, and all checks are made before the first file is written.
"""

import argparse
import re
from pathlib import Path

from mindgpt.checkpoints.run_folder import Step
from mindgpt.checkpoints.transform import transform
from mindgpt.config.arguments import CheckedParser, file_argument


def build_parser() -> CheckedParser:
    """The parser of the program."""
    parser = CheckedParser.documented(__doc__)
    add = parser.add_argument
    add(
        "--src_ckpt_dir",
        type=file_argument,
        required=True,
        metavar="DIR",
        help="folder of rank_0, rank_1, ..., or a whole .ckpt",
    )
    add(
        "--src_ckpt_strategy", type=optional_path, metavar="PATH", help="strategy files of the source (those beside it)"
    )
    add(
        "--dst_ckpt_dir",
        type=file_argument,
        required=True,
        metavar="DIR",
        help="folder of the result, not among the sources",
    )
    add("--dst_ckpt_strategy", type=optional_path, metavar="PATH", help="strategy of the result (one whole file)")
    add("--prefix", default="checkpoint_", help="of the result's names (%(default)s)")
    add("--step", type=step, metavar="EPOCH_STEP", help="which checkpoint, e.g. 1_500 (the newest)")
    add(
        "--training_state",
        action=argparse.BooleanOptionalAction,
        help="write optimizer state, loss scale and counters, too (only with --dst_ckpt_strategy)",
    )
    add(
        "--vocab_size",
        type=int,
        metavar="ROWS",
        help="rows of the token table: more add padding of zeros, fewer remove padding (as many as there are)",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    given = build_parser().parse_args(argv)
    transform(
        given.src_ckpt_dir,
        given.dst_ckpt_dir,
        given.prefix,
        given.src_ckpt_strategy,
        given.dst_ckpt_strategy,
        given.step,
        given.training_state,
        given.vocab_size,
    )


def optional_path(text: str) -> Path | None:
    """A path; empty or None, as MindFormers' scripts write it, for none."""
    return file_argument(text) if text not in ("", "None") else None


def step(text: str) -> Step:
    match = re.fullmatch(r"(\d+)_(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form <epoch>_<step>, as in the checkpoints' names")
    return Step(int(match[1]), int(match[2]))
