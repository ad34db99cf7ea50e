"""What a configuration may say about text classification, and what it may not."""

import pytest
from pydantic import ValidationError

from mindgpt.config.run_config import RunConfig
from mindgpt.config.section import dotted, problems_of

CLASSIFIER = {
    "run_mode": "eval",
    "trainer": {"type": "TextClassificationTrainer"},
    "model": {"arch": {"type": "GPT2ForSequenceClassification"}},
}


def problems(**values):
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(values)
    return {dotted(where): what for where, what in problems_of(caught.value)}


def test_the_metric_follows_from_the_trainer():
    assert RunConfig.model_validate(CLASSIFIER).metric.type == "Accuracy"
    assert RunConfig.model_validate({"run_mode": "eval"}).metric.type == "PerplexityMetric"


def test_the_kind_of_data_follows_from_the_trainer():
    assert RunConfig.model_validate(CLASSIFIER).train_dataset_task.type == "TextClassificationDataset"
    assert RunConfig.model_validate({"run_mode": "eval"}).eval_dataset_task.type == "CausalLanguageModelDataset"


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({**CLASSIFIER, "metric": {"type": "PerplexityMetric"}}, "metric.type", "which has 'Accuracy'"),
        ({"run_mode": "eval", "metric": {"type": "Accuracy"}}, "metric.type", "which has 'PerplexityMetric'"),
        ({"run_mode": "eval", "train_dataset": {"num_buckets": 2}}, "train_dataset.num_buckets", "has no effect"),
        (
            {"run_mode": "eval", "train_dataset_task": {"type": "TextClassificationDataset"}},
            "train_dataset_task.type",
            "which needs 'CausalLanguageModelDataset'",
        ),
        (
            {**CLASSIFIER, "eval_dataset_task": {"type": "CausalLanguageModelDataset"}},
            "eval_dataset_task.type",
            "which needs 'TextClassificationDataset'",
        ),
        ({"run_mode": "eval", "trainer": {"class_weights": "balanced"}}, "trainer.class_weights", "has no effect"),
        (
            {**CLASSIFIER, "trainer": {**CLASSIFIER["trainer"], "class_weights": [1.0, 2.0, 3.0]}},
            "trainer.class_weights",
            "has 3 factors, and model.model_config.num_labels is 2",
        ),
        (
            {**CLASSIFIER, "model": {**CLASSIFIER["model"], "model_config": {"num_labels": 1}}},
            "model.model_config.num_labels",
            "must be at least 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused(values, key, words):
    assert words in problems(**values)[key]
