"""Learn a vocabulary from text files: byte-level BPE, GPT-2's kind; WordPiece, the kind of Chinese GPT-2 models; or
byte-level BPE of jieba's words, the kind of ModelScope's Chinese GPT-3.

python tools/train_tokenizer.py --input_file corpus/ --vocab_size 8000 --output_dir my-tokenizer
python tools/train_tokenizer.py --kind wordpiece --input_file corpus/ --vocab_size 8000 --output_dir my-tokenizer
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from mindgpt.config.arguments import CheckedParser, path_argument
from mindgpt.config.errors import UserError
from mindgpt.data.blocks import use_cores
from mindgpt.data.text import likely_size
from mindgpt.data.tool_arguments import TextFiles, add_text_arguments
from mindgpt.io.files import set_aside
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from mindgpt.tokenizers.jieba_tokenizer import JiebaTokenizer
from mindgpt.tokenizers.loading import TOKENIZER_FILES
from mindgpt.tokenizers.wordpiece_tokenizer import WordPieceTokenizer


def build_parser() -> CheckedParser:
    """The parser of the program."""
    parser = CheckedParser(
        description="Learn a vocabulary: of byte-level BPE, with <|endoftext|> as its last token; of WordPiece, with "
        "[PAD], [UNK], [CLS], [SEP] and [MASK] as its first; or of byte-level BPE of jieba's words, with <|endoftext|> "
        "and <sep> as its first and the line end as its last."
    )
    add_text_arguments(parser)
    parser.add_argument(
        "--kind",
        choices=["bpe", "wordpiece", "jieba"],
        default="bpe",
        help="bpe: GPT-2's byte-level BPE (default). wordpiece: BERT's, where each Chinese character is a word. jieba: "
        "as ModelScope's GPT-3 has it",
    )
    parser.add_argument(
        "--keep_case", action="store_true", help="of wordpiece: tell capitals from small letters (default: lower case)"
    )
    parser.add_argument(
        "--vocab_size", type=int, required=True, help="tokens in all; of bpe, at least 257, of jieba 259"
    )
    parser.add_argument(
        "--output_dir",
        type=path_argument,
        required=True,
        help="folder for vocab.json, merges.txt and tokenizer.json; of wordpiece, vocab.txt and tokenizer_config.json; "
        "of jieba, tokenizer.json and tokenizer_config.json",
    )
    parser.add_argument("--min_frequency", type=int, default=2, help="merge pairs that occur so often (default 2)")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the tokenizer in a folder that has one; files of another kind are renamed",
    )
    parser.add_argument("--num_workers", type=int, help="cores to work on (default: all)")
    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.keep_case and arguments.kind != "wordpiece":
        parser.error("--keep_case is for --kind wordpiece; the other kinds always keep the case")
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    use_cores(arguments.num_workers)
    folder = Path(arguments.output_dir)
    existing = [name for name in TOKENIZER_FILES if (folder / name).exists()]
    if existing and not arguments.overwrite:
        raise UserError(f"{folder} holds a tokenizer already ({existing[0]}). Use --overwrite to replace it.")
    files = TextFiles(arguments)
    total = likely_size(files.files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="reading", disable=None) as progress:
        texts = Texts(files, progress)
        given = {"vocab_size": arguments.vocab_size, "min_frequency": arguments.min_frequency}
        if arguments.kind == "wordpiece":
            progress.total = 2 * total  # it reads the text twice
            tokenizer = WordPieceTokenizer.train(texts, **given, do_lower_case=not arguments.keep_case)
        else:
            kind = JiebaTokenizer if arguments.kind == "jieba" else GPT2Tokenizer
            tokenizer = kind.train(texts, **given)
    for name in set(existing) - set(tokenizer.FILES):  # load_tokenizer might prefer the old tokenizer's files
        set_aside(folder / name)
    tokenizer.save_pretrained(folder)
    fewer = ""
    if len(tokenizer) < arguments.vocab_size:
        fewer = f" ({arguments.vocab_size} were asked for; no more pairs occur {arguments.min_frequency} times)"
    print(f"{len(tokenizer)} tokens{fewer} -> {folder}")


class Texts:
    """The texts of the input files, which may be read again; progress is shown."""

    def __init__(self, files: TextFiles, progress: tqdm):
        self._files, self._progress, self._warns = files, progress, True

    def __iter__(self) -> Iterator[str]:
        for piece in self._files.pieces(warns=self._warns):
            self._progress.update(len(piece.text.encode()))
            yield piece.text
        self._warns = False  # once
