"""LoRA adapters to and from the folders of Hugging Face's library PEFT, exactly.

    python tools/convert_lora.py --mindspore_path output/checkpoint --peft_dir peft/
    python tools/convert_lora.py --reversed --peft_dir peft/ --mindspore_path adapter.ckpt --config gpt2-hf/

A run takes a PEFT folder as it is (--adapter peft/), so the second is for those who want a file of MindFormers' names.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.config.arguments import CheckedParser, file_argument
from mindgpt.config.errors import run_program
from mindgpt.tasks.merge_lora import export_peft, import_peft


def main() -> None:
    parser = CheckedParser.documented(__doc__)
    add = parser.add_argument
    add(
        "--mindspore_path",
        type=file_argument,
        required=True,
        metavar="PATH",
        help="a LoRA checkpoint, adapter or their folder",
    )
    add("--peft_dir", type=file_argument, required=True, metavar="DIR", help="folder of adapter_model.safetensors")
    add("--reversed", action="store_true", help="write --mindspore_path from --peft_dir")
    add(
        "--config",
        type=file_argument,
        metavar="PATH",
        help="with --reversed: config of the base, to lie beside the adapter",
    )
    given = parser.parse_args()
    if given.reversed:
        import_peft(given.peft_dir, given.mindspore_path, given.config)
    elif given.config is not None:
        parser.error("--config is for --reversed; the settings of a checkpoint lie beside it")
    else:
        export_peft(given.mindspore_path, given.peft_dir)


if __name__ == "__main__":
    run_program(main)
