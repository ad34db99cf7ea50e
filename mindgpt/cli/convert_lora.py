"""LoRA adapters to and from the folders of Hugging Face's library PEFT and the files of TencentPretrain, exactly.

    python tools/convert_lora.py --mindspore_path output/checkpoint --peft_dir peft/
    python tools/convert_lora.py --reversed --peft_dir peft/ --mindspore_path adapter.ckpt --config gpt2-hf/
    python tools/convert_lora.py --mindspore_path output/checkpoint --tencentpretrain_path lora.bin
    python tools/convert_lora.py --reversed --tencentpretrain_path lora.bin --lora_alpha 16 --mindspore_path x.ckpt

A run takes a PEFT folder or a file of TencentPretrain as it is (--adapter peft/), so --reversed is for those who want a
file of MindFormers' names. --mindspore_path takes a file of TencentPretrain, too, to make a PEFT folder of it.
"""

from mindgpt.config.arguments import CheckedParser, file_argument
from mindgpt.tasks.merge_lora import export_peft, export_tencentpretrain, import_adapter


def build_parser() -> CheckedParser:
    """The parser of the program."""
    parser = CheckedParser.documented(__doc__)
    add = parser.add_argument
    add(
        "--mindspore_path",
        type=file_argument,
        required=True,
        metavar="PATH",
        help="a LoRA checkpoint, adapter or their folder",
    )
    add("--peft_dir", type=file_argument, metavar="DIR", help="folder of adapter_model.safetensors")
    add("--tencentpretrain_path", type=file_argument, metavar="PATH", help="LoRA .bin of TencentPretrain")
    add("--reversed", action="store_true", help="write --mindspore_path from the other")
    add("--lora_alpha", type=float, metavar="A", help="what it was, where no file says it, as TencentPretrain's")
    add(
        "--config",
        type=file_argument,
        metavar="PATH",
        help="with --reversed: config of the base, to lie beside the adapter",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    given = parser.parse_args(argv)
    other = given.peft_dir or given.tencentpretrain_path
    if other is None or (given.peft_dir and given.tencentpretrain_path):
        parser.error("give --peft_dir or --tencentpretrain_path, one of them")
    if given.reversed:
        import_adapter(other, given.mindspore_path, given.config, given.lora_alpha)
    elif given.config is not None:
        parser.error("--config is for --reversed; the settings of a checkpoint lie beside it")
    elif given.peft_dir:
        export_peft(given.mindspore_path, given.peft_dir, given.lora_alpha)
    elif given.lora_alpha is not None:
        parser.error("--lora_alpha is no part of TencentPretrain's file; leave it out")
    else:
        export_tencentpretrain(given.mindspore_path, given.tencentpretrain_path)
