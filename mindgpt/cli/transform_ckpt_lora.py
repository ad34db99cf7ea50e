"""Merge LoRA into its base weights: the result is a plain checkpoint that computes the same.

    # a LoRA checkpoint, or a run's folder of them (the newest counts), also one that is sharded over ranks
    python tools/transform_ckpt_lora.py --src_ckpt_path_or_dir output/checkpoint --dst_ckpt_dir merged --prefix gpt2_
    # base weights (.ckpt or Hugging Face folder) and an adapter (PEFT folder or .ckpt of trained parameters)
    python tools/transform_ckpt_lora.py --src_ckpt_path_or_dir gpt2.ckpt --adapter peft/ --dst_ckpt_dir merged

The scaling, lora_alpha / lora_rank, is read from the config.json beside the checkpoint or from the configuration that
its run kept; where neither is there, as with checkpoints of MindFormers, give --lora_alpha or --lora_scaling. The
result is <dst_ckpt_dir>/rank_0/<prefix>0.ckpt; the sources are only read.
"""

from mindgpt.config.arguments import CheckedParser, file_argument
from mindgpt.tasks.merge_lora import merge


def build_parser() -> CheckedParser:
    """The parser of the program."""
    parser = CheckedParser.documented(__doc__)
    add = parser.add_argument
    add(
        "--src_ckpt_path_or_dir",
        type=file_argument,
        required=True,
        metavar="PATH",
        help="a LoRA checkpoint, or base weights",
    )
    add(
        "--dst_ckpt_dir",
        type=file_argument,
        required=True,
        metavar="DIR",
        help="folder of the result, not among the sources",
    )
    add("--prefix", default="checkpoint_", help="of the result's name (%(default)s)")
    add(
        "--adapter", type=file_argument, metavar="PATH", help="the LoRA, if the checkpoint holds the base weights alone"
    )
    add("--lora_scaling", type=float, metavar="X", help="lora_alpha / lora_rank, in place of what the config says")
    add("--lora_alpha", type=float, metavar="X", help="the same by lora_alpha; the rank is that of the factors")
    add("--src_ckpt_strategy", type=file_argument, metavar="PATH", help="how the shards belong together")
    return parser


def main(argv: list[str] | None = None) -> None:
    given = build_parser().parse_args(argv)
    merge(
        given.src_ckpt_path_or_dir,
        given.dst_ckpt_dir,
        given.prefix,
        given.adapter,
        given.lora_scaling,
        given.lora_alpha,
        given.src_ckpt_strategy,
    )
