"""Text in, labels out: texts through the tokenizer, and in batches of like length through a classifier."""

from collections.abc import Callable, Sequence

import numpy as np
from mindspore import Tensor

from mindgpt.config.errors import UserError
from mindgpt.data.buckets import BucketPlan, LabelledRows, batches_of_epoch, bucket_lengths
from mindgpt.generation.engine import evaluating, graph_mode
from mindgpt.generation.text_generation import check_batch_size, check_ids
from mindgpt.models.gpt2.gpt2_classifier import GPT2ForSequenceClassification
from mindgpt.tokenizers.tokenizer import BaseTokenizer

LENGTHS = 4  # to pad to; each is a graph to compile


def encode_texts(
    tokenizer: BaseTokenizer, texts: Sequence[str], longest: int, vocab_size: int
) -> tuple[list[list[int]], list[int]]:
    """The ids of each text, truncated to `longest` tokens; and the numbers of those that were truncated.

    Raises:
        UserError: a text is empty, or holds a token that the model, of `vocab_size` tokens, does not have.
    """
    rows = tokenizer.encode_batch(texts)
    around = tokenizer.num_special_tokens_to_add()
    for number, row in enumerate(rows):
        if len(row) <= around:
            raise UserError(f"Text {number} is empty: there is nothing to label.")
    too_long = [number for number, row in enumerate(rows) if len(row) > longest]
    for number in too_long:
        rows[number] = tokenizer.encode_batch([texts[number]], longest)[0]
    check_ids(tokenizer, rows, [f"Text {number}" for number in range(len(rows))], vocab_size)
    return rows, too_long


def label_probabilities(
    model: GPT2ForSequenceClassification,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
    on_new_length: Callable[[int], None] | None = None,
) -> np.ndarray:
    """(rows, C) float64: softmax of the logits of each row of ids, which does not depend on the rows beside it.

    `on_batch` is called with the number of rows that a batch has done; `on_new_length` with a length before its graph
    is compiled.
    """
    check_batch_size(batch_size)
    if not rows:
        return np.zeros((0, model.config.num_labels))
    ids = np.concatenate([np.asarray(row, np.int32) for row in rows])
    starts = np.cumsum([0, *map(len, rows)])
    texts = LabelledRows(ids, np.ones_like(ids), starts, np.zeros(len(rows), np.int32))
    buckets = bucket_lengths(texts.lengths, LENGTHS, model.config.max_position_embeddings)
    batch_size = min(batch_size, len(rows))
    plan = BucketPlan(texts.lengths, buckets, batch_size, shuffle=False, seed=0, drop_remainder=False)
    logits = np.zeros((len(rows), model.config.num_labels))
    with evaluating(cell for _, cell in model.cells_and_names()), graph_mode():
        compiled = set()
        for length, numbers in batches_of_epoch(plan, epoch=0):
            if on_new_length is not None and length not in compiled:
                compiled.add(length)
                on_new_length(length)
            ids, mask, _ = texts.batch(numbers, length, batch_size)
            logits[numbers] = model(Tensor(ids), Tensor(mask)).asnumpy()[: len(numbers)]
            if on_batch is not None:
                on_batch(len(numbers))
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
