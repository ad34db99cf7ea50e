"""What `metric.type: GenerationMetric` measures: the responses of a model to the prompts of a data set."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mindgpt.config.errors import UserError
from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import Strategy
from mindgpt.data.blocks import IGNORED_LABEL
from mindgpt.data.dataset import DatasetInfo
from mindgpt.data.modelscope_rows import RECIPE as MODELSCOPE_RECIPE
from mindgpt.data.modelscope_rows import modelscope_layout
from mindgpt.evaluation.generation_metrics import GenerationMetric
from mindgpt.generation import GenerationSettings
from mindgpt.generation.engine import Generator, generator_of
from mindgpt.generation.text_generation import check_tokenizer_fits
from mindgpt.io.files import atomic_write
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.runtime.collectives import data_parallel_ranks, gather_objects, strategy
from mindgpt.runtime.ranks import rank
from mindgpt.runtime.targets import is_simulated
from mindgpt.tasks.datasets import evaluation_data, reading
from mindgpt.tasks.prompts import Progress, find_tokenizer
from mindgpt.tokenizers.tokenizer import BaseTokenizer

MAX_NEW_TOKENS = 100  # as ModelScope
FILE = "eval_generations.jsonl"


class Pair(NamedTuple):
    """The prompt of a row, and its target without what ends it."""

    prompt: list[int]
    target: list[int]


class Generation:
    """Generates a response to the prompt of every row, greedily, and compares it with the row's own.

    Other settings of generation than `max_new_tokens` (100 if absent) have no effect. A response ends at the token that
    ends the responses of the data. Attributes as of `tasks.evaluate.Perplexity`; and `rows` and `tokens` of the last
    evaluation, counted over all processes.

    Raises:
        UserError: no data set or no tokenizer, or the two do not fit; a package is missing; the model is sharded.
    """

    name: ClassVar = "GenerationMetric"

    def __init__(self, config: RunConfig):
        if strategy() is Strategy.SEMI_AUTO or is_simulated():
            raise UserError(
                "metric.type GenerationMetric generates text, which a model that is sharded for training, or on "
                "simulated cards, does not. Leave it out to measure the perplexity, or evaluate a merged checkpoint."
            )
        self.config, self.metric = config, GenerationMetric()
        self.dataset, self.info = evaluation_data(config)
        self.tokenizer = find_tokenizer(config)
        check_tokenizer_fits(self.tokenizer, config.model.config.token_count)
        _check_data(self.info, self.tokenizer, config.eval_dataset.input_columns)
        self._ends = _ends_of_responses(self.tokenizer, self.info)
        self.settings = GenerationSettings(
            max_new_tokens=config.model.config.max_new_tokens or MAX_NEW_TOKENS,
            eos_token_id=self._ends,
            context_overflow="slide",  # a row's prompt may fill the context
        )
        self.rows = self.without_target = self.tokens = 0

    def run(self, model: GPT2LMHeadModel) -> dict[str, float]:
        """One pass over the data; writes `eval_generations.jsonl`. Returns the values of the metric.

        Several data-parallel processes must all call it; they get the values of all data.
        """
        pairs = list(self._pairs())
        with_target = [pair for pair in pairs if pair.target]
        records, tokens = self._generated(generator_of(model), with_target)
        mine = [records, tokens, len(pairs) - len(with_target)]
        shares = gather_objects(mine) if data_parallel_ranks() > 1 else [mine]
        records = [record for share in shares for record in share[0]]
        self.rows, self.tokens = len(records), sum(share[1] for share in shares)
        self.without_target = sum(share[2] for share in shares)
        if not records:
            raise UserError(f"{self.info.files[0]}: no row has a target: the sources fill the rows.")
        self.metric.clear()
        self.metric.update([one["prediction"] for one in records], [one["target"] for one in records])
        if rank() == 0:
            with atomic_write(Path(self.config.output_dir) / FILE, "w") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        return self.metric.eval()

    def _pairs(self) -> Iterator[Pair]:
        """The prompts and targets of this process's rows."""
        if self.dataset is None:
            return
        with reading(self.info):
            for ids, _, labels in self.dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
                for row, label in zip(ids, labels, strict=True):
                    yield self._pair(row, np.flatnonzero(label != IGNORED_LABEL))

    def _pair(self, row: np.ndarray, learned: np.ndarray) -> Pair:
        """Where the labels begin, the prompt ends; without labels, it fills the row."""
        first = int(learned[0]) if learned.size else len(row)
        if first == 0:
            raise UserError(
                f"{self.info.files[0]}: has a row without a prompt, to which there is no response: metric.type "
                "GenerationMetric is for data with prompts and responses (src_txt and tgt_txt)."
            )
        target = row[first : int(learned[-1]) + 1].tolist() if learned.size else []
        return Pair(row[:first].tolist(), self._without_end(target))

    def _without_end(self, ids: list[int]) -> list[int]:
        """The ids before the first token that ends a response."""
        return ids[: next((place for place, token in enumerate(ids) if token in self._ends), len(ids))]

    def _generated(self, generator: Generator, pairs: Sequence[Pair]) -> tuple[list[dict[str, str]], int]:
        """A record of each pair, and how many tokens were generated."""
        size, records, tokens = self.config.runner_config.batch_size, [], 0
        with Progress(len(pairs), size, "rows") as progress:
            for start in range(0, len(pairs), size):
                batch = pairs[start : start + size]
                rows = generator.generate([pair.prompt for pair in batch], self.settings)
                for pair, new in zip(batch, rows, strict=True):
                    texts = {"target": pair.target, "prediction": self._without_end(new)}
                    records.append(
                        {"prompt": self.tokenizer.decode(pair.prompt)}
                        | {name: self.tokenizer.decode(ids, skip_special_tokens=True) for name, ids in texts.items()}
                    )
                count = sum(map(len, rows))
                tokens += count
                progress.update(len(batch), count)
        return records, tokens

    def lines(self, values: dict[str, float], seconds: float) -> Iterator[str]:
        """The lines to print."""
        yield f"{self.name}: {{{self.name!r}: {values}}}"
        yield f"{self.rows} rows, {self.tokens:,} tokens in {seconds:.1f} s (compiling included)"
        if self.without_target:
            yield f"{self.without_target} row(s) left out, whose prompt fills the row"
        yield f"generated texts: {Path(self.config.output_dir) / FILE}"

    def result(self, values: dict[str, float]) -> dict[str, Any]:
        """The content of `eval_result.json`."""
        return {"metric": self.name, **values, "rows": self.rows}


def _ends_of_responses(tokenizer: BaseTokenizer, info: DatasetInfo) -> list[int]:
    """The tokens that end a response: end-of-text, and of ModelScope's rows also their separator."""
    ends = [tokenizer.eos_token_id]
    if info.metadata.get("recipe") == MODELSCOPE_RECIPE:
        ends.append(modelscope_layout(tokenizer).separator)
    return list(dict.fromkeys(ends))


def _check_data(info: DatasetInfo, tokenizer: BaseTokenizer, input_columns: list[str] | None) -> None:
    """Raise a UserError if the data has no prompts and responses, or was made with another tokenizer."""
    file = info.files[0]
    if "labels" not in info.columns or (input_columns is not None and "labels" not in input_columns):
        raise UserError(
            f"{file}: is read without 'labels', which tell a prompt from its response: metric.type GenerationMetric is "
            "for data of tools/dataset_preprocess/instruction_to_mindrecord.py."
        )
    if info.metadata.get("recipe") == "instructions, packed":
        raise UserError(f"{file}: has several examples in a row; for GenerationMetric, make it without --pack.")
    made_with = info.metadata.get("vocab_sha256")
    if made_with not in (None, tokenizer.vocab_hash()):
        raise UserError(
            f"{file}: was made with another tokenizer than this one ({tokenizer}); name its own with --tokenizer."
        )
