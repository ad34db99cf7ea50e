"""`run_mode: predict` of a classifier: from texts to labels and their probabilities."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindgpt.config.run_config import RunConfig
from mindgpt.generation.labels import encode_texts, label_probabilities
from mindgpt.generation.text_generation import check_tokenizer_fits
from mindgpt.io.files import atomic_write
from mindgpt.runtime.collectives import gather_shares, share
from mindgpt.runtime.ranks import rank, say
from mindgpt.tasks.model_setup import build_model
from mindgpt.tasks.prompts import BATCH_SIZE, Progress, find_tokenizer, read_prompts
from mindgpt.tasks.session import save_config


@dataclass(frozen=True)
class Prediction:
    """A text, the likeliest label, and the probability of every label, in the order of their numbers."""

    text: str
    label: str
    probabilities: dict[str, float]


def classify(config: RunConfig, predict_data: list[str]) -> list[Prediction]:
    """Label every text; writes the labels to `predictions.jsonl` and prints them. Several processes share the texts.

    Args:
        predict_data: texts, or names of files and folders of texts; see `read_prompts`.

    Raises:
        UserError: no texts, no tokenizer, or weights that do not fit.
    """
    texts = [prompt.text.strip() for prompt in read_prompts(predict_data)]
    tokenizer = find_tokenizer(config)
    check_tokenizer_fits(tokenizer, config.model.config.token_count)
    longest = config.model.config.seq_length
    rows, truncated = encode_texts(tokenizer, texts, longest, config.model.config.token_count)
    model, config = build_model(config)
    names = model.config.names_of_labels()
    mine = [rows[number] for number in share(len(rows))]
    batch_size = config.model.config.batch_size or BATCH_SIZE
    with Progress(len(mine), batch_size, "texts") as progress:
        of_mine = label_probabilities(model, mine, batch_size, progress.update, _say_compiling)
    probabilities = gather_shares(of_mine.tolist())
    if truncated:
        say(f"note: {len(truncated)} text(s) of more than {longest} tokens were cut at their end")
    predictions = [
        Prediction(text, names[int(np.argmax(of_text))], dict(zip(names, of_text, strict=True)))
        for text, of_text in zip(texts, probabilities, strict=True)
    ]
    save_config(config)
    path = Path(config.output_dir) / "predictions.jsonl"
    _write(path, predictions)
    for prediction in predictions:  # after the file: the labels are kept even if the console fails
        say(f"\n>>> {prediction.text}\n{_line(prediction)}")
    say(f"\n{len(predictions)} text(s): {path}")
    return predictions


def _say_compiling(length: int) -> None:
    say(f"the first texts padded to {length} tokens, compiling")


def _line(prediction: Prediction) -> str:
    likeliest_first = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    return f"{prediction.label} ({', '.join(f'{name} {value:.4f}' for name, value in likeliest_first)})"


def _write(path: Path, predictions: list[Prediction]) -> None:
    if rank() != 0:
        return
    with atomic_write(path, "w") as file:
        for prediction in predictions:
            record = {
                "text": prediction.text,
                "label": prediction.label,
                "probability": prediction.probabilities[prediction.label],
                "probabilities": prediction.probabilities,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
