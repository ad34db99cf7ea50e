"""`run_mode: eval`: the perplexity of a model on a data set."""

import json
import time
from pathlib import Path

from mindspore.train import Model

from mindgpt.config.errors import UserError
from mindgpt.config.run import RunConfig
from mindgpt.data.files import atomic_write
from mindgpt.evaluation.perplexity import PerplexityCell, PerplexityMetric
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.runtime.ranks import say
from mindgpt.tasks.datasets import evaluation_data, reading
from mindgpt.tasks.models import build_model
from mindgpt.tasks.session import keep_config

METRIC = "PerplexityMetric"
_RECIPE_OF_BATCH_MEANS = "wikitext-mindformers"


def evaluate(config: RunConfig) -> dict[str, float]:
    """Evaluate the model of a run; prints the line that MindFormers printed and writes `eval_result.json`."""
    evaluator = Evaluator(config)
    model = build_model(config)
    began = time.monotonic()
    values = evaluator.run(model)
    seconds = time.monotonic() - began
    say(f"{METRIC}: {{{METRIC!r}: {values}}}")
    tokens = evaluator.metric.tokens
    say(f"{tokens:,} predicted tokens in {seconds:.1f} s, {tokens / seconds:.0f} tokens/s (compiling included)")
    if evaluator.metric.batch_means:
        say(
            "loss is the mean of batch means, as MindFormers computed it for this data; each token counted once: "
            f"{evaluator.metric.token_weighted()}"
        )
    keep_config(config)
    path = Path(config.output_dir) / "eval_result.json"
    with atomic_write(path, "w") as file:
        json.dump({"metric": METRIC, **values, "tokens": tokens, "data": evaluator.info.files}, file, indent=2)
    say(f"result: {path}")
    return values


class Evaluator:
    """A data set that is ready, before the minutes of building a model, and its metric; also used during training."""

    def __init__(self, config: RunConfig):
        self.dataset, self.info = evaluation_data(config)
        self.metric = PerplexityMetric(batch_means=self.info.metadata.get("recipe") == _RECIPE_OF_BATCH_MEANS)
        self._cell: PerplexityCell | None = None

    def run(self, model: GPT2LMHeadModel) -> dict[str, float]:
        """One pass over the data. Leaves the model in the mode it was in. Returns `loss` and `PPL`."""
        was_training = model.training
        if self._cell is None:
            self._cell = PerplexityCell(model)
        try:
            loop = Model(self._cell, eval_network=self._cell, metrics={METRIC: self.metric})
            with reading(self.info):
                return loop.eval(self.dataset, dataset_sink_mode=False)[METRIC]
        except RuntimeError as error:
            if "no token to predict" in str(error):
                raise UserError(f"{self.info.files[0]}: {error}") from None
            raise
        finally:
            model.set_train(was_training)
