"""The training step: against transformers with torch.optim.AdamW, and on numbers that are not finite."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is torch")
transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

import mindspore as ms  # noqa: E402
from mindspore import Parameter, Tensor, nn  # noqa: E402

from mindgpt import GPT2LMHeadModel  # noqa: E402
from mindgpt.config.optimizer_sections import LRScheduleSection, OptimizerSection  # noqa: E402
from mindgpt.config.training_sections import ScaleSenseSection  # noqa: E402
from mindgpt.train.accumulation_loop import AccumulationLoop  # noqa: E402
from mindgpt.train.optimizers import build_optimizer  # noqa: E402
from mindgpt.train.schedules import LearningRateTable, learning_rates  # noqa: E402
from mindgpt.train.step import AccumulatingTrainStep, TrainStep  # noqa: E402

pytestmark = pytest.mark.usefixtures("cpu")

STEPS = 20
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def optimizer_for(model, steps=STEPS, rate=1e-3, **settings):
    schedule = LRScheduleSection(type="cosine", learning_rate=rate, warmup_steps=min(4, steps))
    rates = learning_rates(schedule, steps)
    return build_optimizer(OptimizerSection(**settings), model.trainable_params(), LearningRateTable(rates)), rates


def torch_losses(model, batches, rates, accumulation):
    """The textbook loop: mean of the micro-batches' gradients, clipped to 1, AdamW with decay 0.1 on matrices."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for batch, rate in zip(batches, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        parts = []
        for micro in np.split(batch, accumulation):
            tokens = torch.tensor(micro).long()
            loss = model(tokens, labels=tokens).loss
            (loss / accumulation).backward()
            parts.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        losses.append(np.mean(parts))
    return losses, norms


@pytest.mark.parametrize(
    ("accumulation", "scale", "kind"),
    [
        (2, ScaleSenseSection(), AccumulatingTrainStep),
        (4, ScaleSenseSection(), AccumulationLoop),
        (1, ScaleSenseSection(type="dynamic", loss_scale_value=2.0**32, scale_window=3), TrainStep),
    ],
    ids=["accumulation", "accumulation in one graph", "dynamic loss scale"],
)
def test_loss_curve_equals_transformers_with_torch_adamw(tmp_path, accumulation, scale, kind):
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 307, "n_positions": 33}
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **NO_DROPOUT, bos_token_id=0, eos_token_id=0))
    peer.save_pretrained(tmp_path)
    model = GPT2LMHeadModel.from_pretrained(tmp_path).set_train(True)
    optimizer, rates = optimizer_for(model)
    rng = np.random.default_rng(0)
    # A few rows again and again, so that the loss falls and an error in the update shows.
    rows = rng.integers(0, 307, (12, 33)).astype(np.int32)
    batches = [rows[rng.permutation(12)[:8]] for _ in range(STEPS)]
    step = kind(model, optimizer, scale, 1.0, *([accumulation] if accumulation > 1 else []))
    step.set_train()
    results = [[value.asnumpy().item() for value in step(Tensor(batch))] for batch in batches]
    losses, norms = torch_losses(peer.train(), batches, rates, accumulation)
    np.testing.assert_allclose([r[0] for r in results], losses, rtol=1e-4)
    np.testing.assert_allclose([r[4] for r in results], norms, rtol=1e-3)
    np.testing.assert_allclose([r[3] for r in results], rates, rtol=1e-6)
    assert not any(r[1] for r in results)
    assert losses[-1] < 0.9 * losses[0], "the curve must have somewhere to go, or it proves nothing"
    assert max(norms) > 1.0, "clipping must have acted"


class Quadratic(nn.Cell):
    """mean(w^2) * x: a loss whose finiteness the batch decides."""

    def __init__(self):
        super().__init__()
        self.w = Parameter(Tensor([[1.0, -2.0], [3.0, 0.5]], ms.float32), name="w")
        self.b = Parameter(Tensor([0.3], ms.float32), name="b")

    def construct(self, x):
        return ((self.w * self.w).mean() + self.b.sum()) * x.mean()


def batch(value, rows=2):
    return Tensor(np.full((rows, 1), value, np.float32))


def state_of(step):
    return {name: p.asnumpy().copy() for name, p in step.parameters_dict().items() if "accu_grads" not in name}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_step_changes_nothing_but_the_scale(accumulation, bad):
    model = Quadratic()
    optimizer, _ = optimizer_for(model)
    scale = ScaleSenseSection(type="dynamic", loss_scale_value=64.0, scale_window=2)
    if accumulation == 1:
        step = TrainStep(model, optimizer, scale, 1.0)
    else:
        step = AccumulatingTrainStep(model, optimizer, scale, 1.0, accumulation)
    step.set_train()
    step(batch(1.0))
    before = state_of(step)
    loss, skipped, used, _, norm = (value.asnumpy().item() for value in step(batch(bad)))
    after = state_of(step)
    assert skipped
    assert not np.isfinite(loss)
    assert not np.isfinite(norm)
    assert used == 64.0
    assert after.pop("loss_scale") == 32.0
    assert after.pop("current_iterator_step") == 0
    assert after.pop("dropout_key") != before["dropout_key"], "the next batch has masks of its own"
    for name, value in after.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    good = [step(batch(1.0)) for _ in range(2)]
    assert not any(result[1].asnumpy() for result in good), "it goes on after a bad step"
    assert np.isfinite(state_of(step)["w"]).all()
    assert state_of(step)["loss_scale"] == 64.0, "two good steps in a row raise the scale"
    assert (state_of(step)["w"] != before["w"]).any()


def test_an_overflow_of_the_scaled_loss_alone_skips_the_step():
    model = Quadratic()
    optimizer, _ = optimizer_for(model)
    step = TrainStep(model, optimizer, ScaleSenseSection(type="dynamic", loss_scale_value=2.0**126), 1.0)
    step.set_train()
    loss, skipped, _, _, _ = (value.asnumpy().item() for value in step(batch(100.0)))
    assert np.isfinite(loss)
    assert skipped


@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
def test_clipping(clip):
    """With SGD-like eps (huge), AdamW's first update is proportional to the clipped gradient."""
    model = Quadratic()
    optimizer, _ = optimizer_for(model, steps=1, eps=1e6, weight_decay=0.0)
    step = TrainStep(model, optimizer, ScaleSenseSection(loss_scale_value=8.0), clip)
    step.set_train()
    w = model.w.asnumpy().copy()
    gradient = np.concatenate([(2 * w / 4).reshape(-1), [1.0]]) * 3.0
    _, _, _, _, norm = (value.asnumpy().item() for value in step(batch(3.0)))
    expected = np.linalg.norm(gradient)
    assert norm == pytest.approx(expected, rel=1e-6)
    first_moment = np.concatenate([m.asnumpy().reshape(-1) for m in optimizer.first_moment])
    factor = 1.0 if clip is None else min(1.0, clip / expected)
    np.testing.assert_allclose(first_moment, 0.1 * gradient * factor, rtol=1e-5)
