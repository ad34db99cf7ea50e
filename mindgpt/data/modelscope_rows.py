"""The rows that ModelScope trains its Chinese GPT-3 on, from a source and maybe a target.

A row of L tokens is `source <sep>` or `source target <sep>`, truncated on the right or padded with id 0. What counts in
the loss: of a source alone all tokens but the first, which nothing predicts; of a pair the target and `<sep>`. Source:
`modelscope/preprocessors/nlp/text_generation_preprocessor.py`, `TextGenerationJiebaPreprocessor`.

ModelScope's base and large models have a WordPiece tokenizer: `[CLS] source [SEP]`, where truncation keeps `[SEP]`
(`TextGenerationTransformersPreprocessor`). Pairs are laid out as above, `[CLS] source target [SEP]`; ModelScope aligns
the target with the positions of the source, from which a decoder cannot learn.
"""

from typing import NamedTuple

from mindgpt.config.errors import UserError
from mindgpt.data.blocks import IGNORED_LABEL
from mindgpt.tokenizers.jieba_files import SEPARATOR
from mindgpt.tokenizers.tokenizer import BaseTokenizer
from mindgpt.tokenizers.wordpiece_tokenizer import WordPieceTokenizer

RECIPE = "modelscope"
PADDING = 0


class Tokens(NamedTuple):
    """The ids of one example or several, and a label for each."""

    ids: list[int]
    labels: list[int]


class ModelScopeLayout(NamedTuple):
    """The tokens around texts.

    Attributes:
        begin: ids before a source.
        separator: the id that ends a row.
        keeps_separator: whether truncation of a source alone keeps the separator.
    """

    begin: list[int]
    separator: int
    keeps_separator: bool

    def tokens(self, source: list[int], target: list[int] | None, length: int) -> Tokens:
        """The row of an example, of at most `length` tokens, without padding.

        A pair whose source fills the row is all source, and has no label. With an empty source the first token of the
        target has nothing before it; its label is never used.

        Args:
            source: the ids of a text to continue, or of the input.
            target: the ids of the output; None: the source alone.
        """
        source = self.begin + source
        if target is None:
            room = length - 1 if self.keeps_separator else length
            ids = [*source[:room], self.separator][:length]
            return Tokens(ids, list(ids))
        ids = [*source, *target, self.separator][:length]
        unlearned = min(len(source), length)
        return Tokens(ids, [IGNORED_LABEL] * unlearned + ids[unlearned:])


def modelscope_layout(tokenizer: BaseTokenizer) -> ModelScopeLayout:
    """The layout for a tokenizer.

    Raises:
        UserError: it has no token that ends a row.
    """
    if isinstance(tokenizer, WordPieceTokenizer):
        return ModelScopeLayout(tokenizer.document_start, tokenizer.sep_token_id, keeps_separator=True)
    separator = tokenizer.get_vocab().get(SEPARATOR)
    if separator is None:
        raise UserError(
            f"ModelScope's rows end with the token {SEPARATOR!r} (or with [SEP] of WordPiece), and this tokenizer "
            f"({tokenizer}) has none. Use the tokenizer of a ModelScope model, or leave out --layout."
        )
    return ModelScopeLayout(tokenizer.document_start, separator, keeps_separator=False)
