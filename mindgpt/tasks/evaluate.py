"""`run_mode: eval`: measures a model on a data set, by `metric.type`."""

import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from mindspore import Tensor, nn
from mindspore.train import Metric, Model

from mindgpt.config.errors import UserError
from mindgpt.config.run_config import RunConfig
from mindgpt.data.modelscope_rows import RECIPE as MODELSCOPE_RECIPE
from mindgpt.evaluation.classification_metrics import ClassificationCell, ClassificationMetric
from mindgpt.evaluation.perplexity import NothingCountedError, PerplexityCell, PerplexityMetric
from mindgpt.io.files import atomic_write
from mindgpt.runtime.collectives import data_parallel_ranks, gather_objects
from mindgpt.runtime.mindspore_errors import is_lookup_error
from mindgpt.runtime.ranks import rank, say
from mindgpt.runtime.targets import is_simulated
from mindgpt.tasks.datasets import evaluation_data, reading, skip_padding_mask
from mindgpt.tasks.generation_evaluation import Generation
from mindgpt.tasks.labelled_data import labelled_evaluation_data
from mindgpt.tasks.model_setup import build_model, say_if_kernels_are_missing
from mindgpt.tasks.session import save_config
from mindgpt.tasks.training_step import zeros_for
from mindgpt.train.compilation_notice import CompilationNotice

_RECIPE_OF_BATCH_MEANS = "wikitext-mindformers"


def evaluate(config: RunConfig) -> dict[str, float]:
    """Evaluate the model of a run; writes `eval_result.json` and prints the line that MindFormers printed."""
    evaluator = Evaluator(config)
    model, config = build_model(evaluator.config)
    skip_padding_mask(model, evaluator.measure.info)
    if not isinstance(evaluator.measure, Classification):
        say_if_kernels_are_missing()
    if is_simulated():
        evaluator.compile(model)
        say("compiled; the cards are simulated, so nothing is evaluated")
        return {}
    began = time.monotonic()
    values = evaluator.run(model)
    seconds = time.monotonic() - began
    save_config(config)
    path = Path(config.output_dir) / "eval_result.json"
    if rank() == 0:
        with atomic_write(path, "w") as file:
            json.dump(evaluator.measure.result(values) | {"data": evaluator.measure.info.files}, file, indent=2)
    for line in evaluator.measure.lines(values, seconds):
        say(line)
    say(f"result: {path}")
    return values


class Perplexity:
    """What is measured of a language model.

    Attributes, as in every entry of `MEASURES`:
        name: of the metric.
        cell: computes a network's output for the metric.
        dataset, info: the data; of several processes each has its share, which may be None.
        config: the configuration, resolved with the data.
        metric: adds up batches.
    """

    name: ClassVar = "PerplexityMetric"

    def __init__(self, config: RunConfig):
        self.dataset, self.info = evaluation_data(config)
        self.config = config
        recipe = self.info.metadata.get("recipe")
        whole_rows = recipe == MODELSCOPE_RECIPE
        self.cell = functools.partial(PerplexityCell, whole_rows=whole_rows)
        self.metric = PerplexityMetric(batch_means=recipe == _RECIPE_OF_BATCH_MEANS, whole_rows=whole_rows)

    def lines(self, values: dict[str, float], seconds: float) -> Iterator[str]:
        """The lines to print; the first is MindFormers'."""
        tokens = self.metric.tokens
        yield f"{self.name}: {{{self.name!r}: {values}}}"
        yield f"{tokens:,} predicted tokens in {seconds:.1f} s, {tokens / seconds:.0f} tokens/s (compiling included)"
        if self.metric.batch_means:
            yield (
                "loss is the mean of batch means, as MindFormers computed it for this data; each token counted once: "
                f"{self.metric.token_weighted()}"
            )
        if "PplMetric" in values:
            yield (
                "PplMetric is ModelScope's number, over all positions of the rows, padding included; PPL is over what "
                "is learned"
            )
        if self.info.metadata.get("learn_padding"):
            yield (
                "note: this data was made with --learn_padding, so PPL counts the padding, too; make evaluation data "
                "without it"
            )
        if self.info.metadata.get("padding_target"):
            yield (
                "note: this data was made with --padding_target, so the perplexity also counts the [PAD] after each "
                "document; make evaluation data without it"
            )

    def result(self, values: dict[str, float]) -> dict[str, Any]:
        """The content of `eval_result.json`."""
        return {"metric": self.name, **values, "tokens": self.metric.tokens}


class Classification:
    """What is measured of a classifier; see `Perplexity`."""

    name: ClassVar = "Accuracy"
    cell: ClassVar = ClassificationCell

    def __init__(self, config: RunConfig):
        self.dataset, self.info, self.config = labelled_evaluation_data(config)
        self.metric = ClassificationMetric(config.model.config.num_labels)

    def lines(self, values: dict[str, float], seconds: float) -> Iterator[str]:
        """The lines to print; the first is MindFormers'."""
        yield f"ACC: {values['ACC']}"
        yield ", ".join(f"{key} {value:.4f}" for key, value in values.items() if key != "ACC")
        yield f"{self.metric.rows} rows in {seconds:.1f} s (compiling included)"

    def result(self, values: dict[str, float]) -> dict[str, Any]:
        """The content of `eval_result.json`."""
        return {
            "metric": self.name,
            **values,
            "rows": self.metric.rows,
            "label_names": self.config.model.config.label_names,
            "confusion": self.metric.confusion.tolist(),  # [label][prediction]
        }


MEASURES = {measure.name: measure for measure in (Perplexity, Classification, Generation)}


class Evaluator:
    """Evaluates a model on the data set of a configuration, also during training. The data is opened and checked when
    it is made, before the minutes of building a model.

    Attributes:
        config: the configuration, resolved with the data.
    """

    def __init__(self, config: RunConfig):
        self.measure = MEASURES[config.metric.type](config)
        self.config: RunConfig = self.measure.config
        self._cell: nn.Cell | None = None
        self._lengths = CompilationNotice()

    def compile(self, model: nn.Cell) -> None:
        """Compile the graph of a batch without running it."""
        dataset = self.measure.dataset
        cell = self.measure.cell(model).set_train(False)
        cell.compile(*zeros_for(dataset.output_shapes()))

    def run(self, model: nn.Cell) -> dict[str, float]:
        """One pass over the data. Leaves the model in the mode it was in. Returns the values of the metric.

        Several data-parallel processes must all call it; they get the values of all data.
        """
        measure, was_training = self.measure, model.training
        if isinstance(measure, Generation):
            return measure.run(model)
        if self._cell is None:
            self._cell = measure.cell(model)
        try:
            with reading(measure.info):
                self._measure()
            return measure.metric.eval()
        except NothingCountedError as error:
            raise UserError(f"{measure.info.files[0]}: {error}") from None
        except RuntimeError as error:
            if is_lookup_error(error):
                raise UserError(
                    f"{measure.info.files[0]}: a token id or a label is outside the vocabulary of the model; was the "
                    "data made by another tokenizer?"
                ) from None
            raise
        finally:
            model.set_train(was_training)

    def _measure(self) -> None:
        """Update the metric with the data of all processes."""
        metric = self.measure.metric
        metric.clear()
        if self.measure.dataset is not None:
            loop = Model(self._cell, eval_network=self._cell, metrics={self.measure.name: _Counting(metric)})
            loop.eval(self.measure.dataset, callbacks=[self._lengths], dataset_sink_mode=False)
        if data_parallel_ranks() > 1:
            metric.restore(gather_objects(metric.state()))


class _Counting(Metric):
    """Passes batches to another metric, whose value is computed only after all processes have counted."""

    def __init__(self, metric: Metric):
        super().__init__()
        self.metric = metric

    def clear(self) -> None:
        """Nothing: `Evaluator` does it."""

    def update(self, *outputs: Tensor) -> None:
        """Add a batch."""
        self.metric.update(*outputs)

    def eval(self) -> None:
        """Nothing yet."""
