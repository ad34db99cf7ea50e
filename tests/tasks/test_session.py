"""Settings that one card cannot obey are said, each once, and only where they are set."""

import pytest

from mindgpt.config import load_config
from mindgpt.tasks.session import _without_effect


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"callbacks.0.async_save": True}, "async_save"),
        ({"micro_batch_interleave_num": 2}, "micro_batch_interleave_num"),
        ({"recompute_config.recompute_slice_activation": True}, "recompute_config"),
        ({"run_mode": "predict", "model.model_config.use_past": False}, "use_past"),
        ({"model.model_config.use_past": False}, None),
        ({}, None),
    ],
    ids=str,
)
def test_said_where_set(tmp_path, overrides, words):
    path = tmp_path / "run.yaml"
    path.write_text("lr_schedule: {learning_rate: 0.001}\ncallbacks:\n  - type: CheckpointMonitor\n")
    config, _ = load_config(path, overrides)
    said = list(_without_effect(config))
    assert len(said) == (words is not None)
    if words:
        assert said[0].startswith(words)
