"""Learn a byte-level BPE vocabulary, GPT-2's kind, from text files.

python tools/train_tokenizer.py --input_file corpus/ --vocab_size 8000 --output_dir my-tokenizer
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from tqdm import tqdm

from mindgpt.config.arguments import CheckedParser, path_argument
from mindgpt.config.errors import UserError, run_program
from mindgpt.data.blocks import use_cores
from mindgpt.data.tool_arguments import TextFiles, add_text_arguments
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CheckedParser(description="Learn a byte-level BPE vocabulary with <|endoftext|> as its last token.")
    add_text_arguments(parser)
    parser.add_argument("--vocab_size", type=int, required=True, help="tokens in all, at least 257")
    parser.add_argument(
        "--output_dir", type=path_argument, required=True, help="folder for vocab.json, merges.txt and tokenizer.json"
    )
    parser.add_argument("--min_frequency", type=int, default=2, help="merge pairs that occur so often (default 2)")
    parser.add_argument("--overwrite", action="store_true", help="replace the tokenizer in a folder that has one")
    parser.add_argument("--num_workers", type=int, help="cores to work on (default: all)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    use_cores(arguments.num_workers)
    folder = Path(arguments.output_dir)
    existing = [name for name in GPT2Tokenizer.FILES if (folder / name).exists()]
    if existing and not arguments.overwrite:
        raise UserError(f"{folder} holds a tokenizer already ({existing[0]}). Use --overwrite to replace it.")
    texts = TextFiles(arguments)
    with tqdm(
        total=sum(map(os.path.getsize, texts.files)), unit="B", unit_scale=True, desc="reading", disable=None
    ) as progress:
        tokenizer = GPT2Tokenizer.train(
            _texts(texts, progress), arguments.vocab_size, min_frequency=arguments.min_frequency
        )
    tokenizer.save_pretrained(folder)
    fewer = ""
    if len(tokenizer) < arguments.vocab_size:
        fewer = f" ({arguments.vocab_size} were asked for; no more pairs occur {arguments.min_frequency} times)"
    print(f"{len(tokenizer)} tokens{fewer} -> {folder}")


def _texts(files: TextFiles, progress: tqdm) -> Iterator[str]:
    for piece in files.pieces():
        progress.update(len(piece.text.encode()))
        yield piece.text


if __name__ == "__main__":
    run_program(main)
