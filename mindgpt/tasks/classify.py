"""`run_mode: predict` of a classifier: texts in, labels and their probabilities out."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from mindgpt.config.run import RunConfig
from mindgpt.data.buckets import LabelledRows, Plan, batches_of_epoch, bucket_lengths
from mindgpt.data.files import atomic_write
from mindgpt.models.gpt2.gpt2_tokenizer import GPT2Tokenizer
from mindgpt.runtime.collectives import joined, share
from mindgpt.runtime.ranks import rank, say
from mindgpt.tasks.labelled_data import BUCKETS
from mindgpt.tasks.models import build_model
from mindgpt.tasks.predict import BATCH_SIZE, find_tokenizer, read_prompts
from mindgpt.tasks.session import keep_config


@dataclass(frozen=True)
class Prediction:
    """A text, the likeliest label, and the probability of every label, in the order of their numbers."""

    text: str
    label: str
    probabilities: dict[str, float]


def classify(config: RunConfig, predict_data: list[str]) -> list[Prediction]:
    """Label every text; prints the labels and writes them to `predictions.jsonl`. Several processes share the texts.

    Args:
        predict_data: texts, or names of files with one text a line.

    Raises:
        UserError: no texts, no tokenizer, or weights that do not fit.
    """
    texts = [text.strip() for text in read_prompts(predict_data)]
    tokenizer = find_tokenizer(config)
    model = build_model(config)
    names = model.config.names_of_labels()
    rows = _rows([texts[number] for number in share(len(texts))], tokenizer, config.model.config.seq_length)
    batch_size = config.model.config.batch_size or BATCH_SIZE
    probabilities = joined(label_probabilities(model, rows, batch_size).tolist() if len(rows.labels) else [])
    predictions = [
        Prediction(text, names[int(np.argmax(of_text))], dict(zip(names, of_text, strict=True)))
        for text, of_text in zip(texts, probabilities, strict=True)
    ]
    keep_config(config)
    for prediction in predictions:
        say(f"\n>>> {prediction.text}\n{_line(prediction)}")
    _write(config, predictions)
    return predictions


def label_probabilities(model: nn.Cell, rows: LabelledRows, batch_size: int) -> np.ndarray:
    """(rows, C) float64: softmax of the logits of each row, which does not depend on the rows beside it."""
    lengths = rows.lengths
    buckets = bucket_lengths(lengths, BUCKETS, model.config.max_position_embeddings)
    batch_size = min(batch_size, len(lengths))
    plan = Plan(lengths, buckets, batch_size, shuffle=False, seed=0, drop_remainder=False)
    model.set_train(False)
    logits = np.zeros((len(lengths), model.config.num_labels))
    for length, numbers in batches_of_epoch(plan, epoch=0):
        ids, mask, _ = rows.batch(numbers, length, batch_size)
        logits[numbers] = model(Tensor(ids), Tensor(mask)).asnumpy()[: len(numbers)]
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _rows(texts: list[str], tokenizer: GPT2Tokenizer, longest: int) -> LabelledRows:
    """The texts' tokens, without labels; the end of what is too long for the model is cut, and a line says so."""
    rows = tokenizer.encode_batch(texts)
    too_long = [number for number, row in enumerate(rows) if len(row) > longest]
    for number in too_long:
        rows[number] = tokenizer.encode_batch([texts[number]], longest)[0]
    cut = sum(joined([len(too_long)]))
    if cut:
        say(f"note: {cut} text(s) of more than {longest} tokens were cut at their end")
    ids = np.concatenate([np.zeros(0, np.int32), *(np.asarray(row, np.int32) for row in rows)])
    starts = np.cumsum([0, *(len(row) for row in rows)])
    return LabelledRows(ids, np.ones_like(ids), starts, np.zeros(len(rows), np.int32))


def _line(prediction: Prediction) -> str:
    likeliest_first = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    return f"{prediction.label} ({', '.join(f'{name} {value:.4f}' for name, value in likeliest_first)})"


def _write(config: RunConfig, predictions: list[Prediction]) -> None:
    if rank() != 0:
        return
    path = Path(config.output_dir) / "predictions.jsonl"
    with atomic_write(path, "w") as file:
        for prediction in predictions:
            record = {
                "text": prediction.text,
                "label": prediction.label,
                "probability": prediction.probabilities[prediction.label],
                "probabilities": prediction.probabilities,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    say(f"\n{len(predictions)} text(s): {path}")
