"""The loss scale that a run starts with: MindFormers' 2^32 would cost the first steps of every float16 run."""

import pytest

from mindgpt.config.run_config import RunConfig
from mindgpt.tasks.training_step import first_loss_scale, loss_scale_note


@pytest.mark.parametrize(
    ("scale", "network", "first"),
    [
        ({"type": "dynamic", "loss_scale_value": 2**32}, {"compute_dtype": "float16"}, 2**16),
        ({"type": "dynamic", "loss_scale_value": 2**32}, {"param_init_type": "float16"}, 2**16),
        ({"type": "dynamic", "loss_scale_value": 2**32}, {"compute_dtype": "bfloat16"}, 2**32),
        ({"type": "dynamic", "loss_scale_value": 2**32}, {}, 2**32),
        ({"type": "dynamic", "loss_scale_value": 1024}, {"compute_dtype": "float16"}, 1024),
        ({"type": "static", "loss_scale_value": 2**32}, {"compute_dtype": "float16"}, 2**32),
    ],
)
def test_a_dynamic_scale_starts_where_float16_gradients_may_be_finite(scale, network, first):
    config = RunConfig.model_validate(
        {
            "lr_schedule": {"learning_rate": 1e-4},
            "runner_wrapper": {"scale_sense": scale},
            "model": {"model_config": network},
        }
    )
    assert first_loss_scale(config).loss_scale_value == first
    note = loss_scale_note(config)
    assert (note is None) == (first == scale["loss_scale_value"])
    assert note is None or "starts at 65536, not at 4.29497e+09" in note
    assert config.runner_wrapper.scale_sense.loss_scale_value == scale["loss_scale_value"]  # as the YAML has it
