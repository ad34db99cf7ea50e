"""Which blocks and operators `recompute_config` marks, by MindFormers' forms of its keys."""

import pytest

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.config.errors import UserError
from mindgpt.config.recompute_section import RecomputeSection
from mindgpt.models.gpt2.gpt2_recompute import apply_recompute

pytestmark = pytest.mark.usefixtures("cpu")

BLOCKS_OF_STAGES = (2, 3)
TANH, SOFTMAX = r"output\.activation\.tanh", r"attention\.attend\.softmax"


@pytest.fixture
def new_model():
    config = GPT2Config(num_layers=5, hidden_size=8, num_heads=2, vocab_size=16, seq_length=8)
    return lambda: GPT2LMHeadModel(config)


def marked(model, attribute="recompute"):
    """For each block the paths of operators that have the attribute, and its value; without those of dropout masks."""
    found = []
    for block in model.backbone.blocks:
        of_block = {}
        for path, cell in block.cells_and_names():
            for name, operator in cell._primitives.items():
                if operator is not None and attribute in operator.attrs and name != "draw":
                    of_block[f"{path}.{name}".lstrip(".")] = operator.attrs[attribute]
        found.append(of_block)
    return found


def whole_blocks(model):
    """Whether each block is recomputed."""
    return [block._has_config_recompute for block in model.backbone.blocks]


def test_the_first_blocks_of_each_stage_are_recomputed(new_model):
    model = new_model()
    apply_recompute(model.backbone, RecomputeSection(recompute=[1, 2]), BLOCKS_OF_STAGES)
    assert whole_blocks(model) == [True, False, True, True, False]


@pytest.mark.parametrize("value", [[True, False], [7, 0]])
def test_a_truth_value_and_a_large_number_mean_all_blocks_of_a_stage(new_model, value):
    model = new_model()
    apply_recompute(model.backbone, RecomputeSection(recompute=value), BLOCKS_OF_STAGES)
    assert whole_blocks(model) == [True, True, False, False, False]


def test_operators_by_pattern_and_stage(new_model):
    model = new_model()
    section = RecomputeSection(select_recompute={TANH: True, SOFTMAX: [1, 0]})
    apply_recompute(model.backbone, section, BLOCKS_OF_STAGES)
    tanh, softmax = {"output.activation.tanh": True}, {"attention.attend.softmax": True}
    assert marked(model) == [tanh | softmax, tanh, tanh, tanh, tanh]


def test_a_list_of_patterns_is_for_all_blocks(new_model):
    model = new_model()
    apply_recompute(model.backbone, RecomputeSection(select_recompute=[r"layernorm\d\.layer_norm"]), BLOCKS_OF_STAGES)
    assert marked(model) == [{"layernorm1.layer_norm": True, "layernorm2.layer_norm": True}] * 5


def test_a_block_that_is_recomputed_does_not_look_at_select_recompute(new_model):
    model = new_model()
    section = RecomputeSection(recompute=[1, 0], select_recompute=[TANH])
    apply_recompute(model.backbone, section, BLOCKS_OF_STAGES)
    assert marked(model) == [{}, *[{"output.activation.tanh": True}] * 4]


def test_operators_that_are_taken_out(new_model):
    model = new_model()
    section = RecomputeSection(recompute=True, select_recompute_exclude={TANH: [0, 3]})
    apply_recompute(model.backbone, section, BLOCKS_OF_STAGES)
    assert marked(model) == [{}, {}, *[{"output.activation.tanh": False}] * 3]


def test_messages_after_the_layer_norms_or_after_what_is_named(new_model):
    model = new_model()
    section = RecomputeSection(select_comm_recompute=[1, 0], select_comm_recompute_exclude=[r"layernorm1\.layer_norm"])
    apply_recompute(model.backbone, section, BLOCKS_OF_STAGES)
    first, second = "layernorm1.layer_norm", "layernorm2.layer_norm"  # on a CPU, with operators of their own
    found = [
        {path: value for path, value in of_block.items() if path in (first, second)}
        for of_block in marked(model, "recompute_comm_op")
    ]
    assert found == [{first: False, second: True}, *[{first: False}] * 4]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"select_recompute": [r"feed_forward\.mul"]}, "matches nothing in a block of this network. In it are "),
        ({"select_recompute_exclude": True}, "recompute_config.select_recompute_exclude: must name operators"),
    ],
)
def test_what_a_network_does_not_have(new_model, section, words):
    with pytest.raises(UserError, match=words) as caught:
        apply_recompute(new_model().backbone, RecomputeSection(**section), BLOCKS_OF_STAGES)
    assert "\n" not in str(caught.value)
