"""The sections' own rules: what they accept, what they store it as, what they refuse and in which words."""

import pytest
from pydantic import ValidationError

from mindgpt.config.callback_sections import CheckpointMonitorSection, EvalCallBackSection, SummaryMonitorSection
from mindgpt.config.data_sections import EvalDatasetSection, TokenizerSection, TrainDatasetSection
from mindgpt.config.execution_sections import ContextSection, ParallelConfigSection, ParallelSection
from mindgpt.config.model_sections import GPT2Section, ModelSection, PetSection
from mindgpt.config.optimizer_sections import OPTIMIZER_KEYS, LRScheduleSection, OptimizerSection
from mindgpt.config.run_config import RunConfig
from mindgpt.config.section import dotted, problems_of
from mindgpt.config.training_sections import MetricSection, RunnerWrapperSection, ScaleSenseSection
from mindgpt.config.unsupported import MoESection

COOLDOWN = {"type": "constant_with_cooldown"}


def problems(section, **values) -> dict[str, str]:
    """The problems that `section` finds in `values`, by dotted key."""
    with pytest.raises(ValidationError) as caught:
        section.model_validate(values)
    return {dotted(location): message for location, message in problems_of(caught.value)}


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("AdamW", "adamw"),
        ("adamw", "adamw"),
        ("AdamWeightDecay", "adamw"),
        ("FusedAdamWeightDecay", "adamw"),
        ("FP32StateAdamWeightDecay", "adamw"),
        ("fp32_adamw", "adamw"),
        ("AdaFactor", "adafactor"),
        ("Lion", "lion"),
        ("SGD", "sgd"),
    ],
)
def test_optimizer_names_become_ours(given, stored):
    assert OptimizerSection(type=given).type == stored


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("ConstantWarmUpLR", "constant"),
        ("LinearWithWarmUpLR", "linear"),
        ("CosineWithWarmUpLR", "cosine"),
        ("CosineWithRestartsAndWarmUpLR", "cosine_with_restarts"),
        ("PolynomialWithWarmUpLR", "polynomial"),
        ("WarmUpStableDecayLR", "constant_with_cooldown"),
        ("polynomial", "polynomial"),
        ("COSINE", "cosine"),
    ],
)
def test_schedule_names_become_ours(given, stored):
    assert LRScheduleSection(type=given, learning_rate=1e-3).type == stored


def test_schedule_defaults_are_those_of_the_schedule():
    cosine = LRScheduleSection(type="cosine", learning_rate=1e-3)
    restarts = LRScheduleSection(type="cosine_with_restarts", learning_rate=1e-3)
    polynomial = LRScheduleSection(type="polynomial", learning_rate=1e-3)
    constant = LRScheduleSection(type="constant", learning_rate=1e-3)
    assert (cosine.lr_end, cosine.num_cycles, cosine.power) == (0.0, 0.5, None)
    assert (restarts.lr_end, restarts.num_cycles, restarts.power) == (0.0, 1.0, None)
    assert (polynomial.lr_end, polynomial.num_cycles, polynomial.power) == (1e-7, None, 1.0)
    assert (constant.lr_end, constant.num_cycles, constant.power) == (None, None, None)
    assert cosine.warmup_steps == 0
    assert LRScheduleSection(learning_rate=1e-3, warmup_ratio=0.1).warmup_steps is None


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"type": "cosine", "power": 2.0}, "power", "has no effect on the schedule 'cosine'"),
        ({"type": "constant", "lr_end": 0.0}, "lr_end", "has no effect"),
        ({"type": "linear", "lr_end": 1.0}, "lr_end", "must be at most learning_rate 0.001"),
        ({"warmup_steps": 0, "warmup_ratio": 0.1}, "warmup_ratio", "and warmup_steps are both set"),
        ({"warmup_ratio": 1.5}, "warmup_ratio", "must be at most 1"),
        ({"total_steps": 0}, "total_steps", "must be -1 (taken from the data) or at least 1"),
        ({"warmup_lr_init": 0.1}, "warmup_lr_init", "must be at most learning_rate"),
        ({"learning_rate": 0}, "learning_rate", "must be greater than 0, not 0"),
        ({"learning_rate": float("nan")}, "learning_rate", "must be a finite number"),
        ({"type": "cosin"}, "type", "did you mean 'cosine'?"),
        ({"type": "CosineAnnealingLR"}, "type", "must be one of constant, linear, cosine"),
        ({"type": "cosine", "timescale": 10}, "timescale", "has no effect on the schedule 'cosine'"),
        ({"type": "noam", "warmup_steps": 4, "lr_end": 0.0}, "lr_end", "which obeys none of these"),
        ({"type": "noam"}, "warmup_steps", "must be at least 1 for the schedule 'noam'"),
        ({"type": "noam", "warmup_steps": 4, "warmup_lr_init": 1e-4}, "warmup_lr_init", "has no effect"),
        ({"type": "inverse_sqrt", "timescale": 0}, "timescale", "must be at least 1, not 0"),
        (COOLDOWN | {"decay_start_steps": 4, "decay_start_ratio": 0.5}, "decay_start_ratio", "are both set"),
        (COOLDOWN | {"decay_start_steps": 4, "warmup_steps": 5}, "decay_start_steps", "4 is before the end of the"),
        (COOLDOWN | {"decay_start_steps": 9, "total_steps": 8}, "decay_start_steps", "must be at most total_steps 8"),
        (COOLDOWN | {"decay_start_ratio": 0.2, "warmup_ratio": 0.3}, "decay_start_ratio", "0.2 is before the end of"),
        ({"type": "linear", "decay_start_steps": 4}, "decay_start_steps", "has no effect on the schedule 'linear'"),
    ],
)
def test_schedule_refuses(values, key, words):
    assert words in problems(LRScheduleSection, **({"learning_rate": 1e-3} | values))[key]


def test_learning_rate_is_required():
    assert problems(LRScheduleSection, type="cosine") == {"learning_rate": "is missing"}


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "+1e-4", "10e-5", ".1e-3"])
def test_number_written_without_a_dot_is_a_number(text):
    """YAML 1.1 reads these as text."""
    assert LRScheduleSection(learning_rate=text).learning_rate == pytest.approx(1e-4)


@pytest.mark.parametrize("value", ["0.1", "eight", True, "1e-4x", [1e-4]])
def test_what_is_no_number_is_refused(value):
    assert problems(LRScheduleSection, learning_rate=value)["learning_rate"].startswith("must be a number, not ")


@pytest.mark.parametrize("value", ["eight", "8", True, 8.0, "1e1"])
def test_what_is_no_whole_number_is_refused(value):
    assert problems(GPT2Section, num_layers=value)["num_layers"] == f"must be a whole number, not {value!r}"


def test_betas_as_a_list():
    optimizer = OptimizerSection(betas=[0.8, 0.7])
    assert (optimizer.beta1, optimizer.beta2) == (0.8, 0.7)
    assert OptimizerSection(betas=[0.8, 0.7], beta1=0.8).beta1 == 0.8
    assert "differs from beta1, which is 0.9" in problems(OptimizerSection, betas=[0.8, 0.7], beta1=0.9)["betas"]
    assert "must be a list of two numbers" in problems(OptimizerSection, betas=0.9)["betas"]


def test_optimizer_defaults_are_those_of_the_optimizer():
    given = {kind: OptimizerSection(type=kind).model_dump(exclude_none=True) for kind in OPTIMIZER_KEYS}
    for kind, keys in OPTIMIZER_KEYS.items():
        assert given[kind] == {"type": kind, **{key: value for key, value in keys.items() if value is not None}}
        assert OptimizerSection(**given[kind]).model_dump(exclude_none=True) == given[kind], "what is written is read"
    assert (given["adamw"]["beta2"], given["adamw"]["weight_decay"]) == (0.95, 0.1)
    assert (given["adafactor"]["beta1"], given["adafactor"]["scale_parameter"]) == (0.0, True)
    assert given["lion"]["beta2"] == 0.99
    assert given["sgd"]["momentum"] == 0.0


def test_adafactors_second_moment_decays_by_one_of_two_rules():
    constant = OptimizerSection(type="adafactor", beta2=0.999)
    assert (constant.beta2, constant.decay_rate) == (0.999, None)
    assert OptimizerSection(**constant.model_dump(exclude_none=True)) == constant, "what is written is read"
    assert OptimizerSection(type="adafactor").decay_rate == 0.8


def test_old_forms_of_optimizers():
    old = {"type": "AdaFactor", "eps": ["1e-30", 1e-2], "beta1": None, "compression": False, "loss_scale": 1.0}
    adafactor = OptimizerSection(**old)
    assert (adafactor.eps, adafactor.min_parameter_scale, adafactor.beta1) == (1e-30, 1e-2, 0.0)
    momentum = OptimizerSection(type="Momentum", momentum=0.9, use_nesterov=True)
    assert (momentum.type, momentum.momentum, momentum.nesterov) == ("sgd", 0.9, True)


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"type": "adamq"}, "type", "must be one of adamw, adafactor, lion, sgd, not 'adamq'; did you mean 'adamw'?"),
        ({"type": "Adam"}, "type", "did you mean 'adamw'?"),
        ({"type": "adamw", "momentum": 0.9}, "momentum", "has no effect on the optimizer 'adamw', which obeys beta1, "),
        ({"type": "lion", "eps": 1e-8}, "eps", "has no effect on the optimizer 'lion', which obeys beta1, beta2, weig"),
        ({"type": "lion", "correct_bias": False}, "correct_bias", "has no effect on the optimizer 'lion'"),
        ({"type": "sgd", "betas": [0.9, 0.99]}, "beta1", "has no effect on the optimizer 'sgd'"),
        ({"type": "adafactor", "beta2": 0.99, "decay_rate": 0.8}, "beta2", "and decay_rate are both set; keep one"),
        ({"type": "adafactor", "relative_step_factor": 0.05}, "relative_step_factor", "needs relative_step: True"),
        ({"type": "adafactor", "eps": [1e-30]}, "eps", "must be a list of two numbers such as [1e-30, 1e-3]"),
        ({"type": "adafactor", "decay_rate": -0.8}, "decay_rate", "must be greater than 0, not -0.8"),
        ({"type": "adafactor", "warmup_init": True}, "warmup_init", "needs relative_step: True"),
        ({"type": "adafactor", "relative_step": True, "learning_rate": 1e-3}, "learning_rate", "has no effect with"),
        ({"type": "adafactor", "compression": True}, "compression", "only False is allowed, not True: the state"),
        ({"type": "sgd", "dampening": 0.1}, "dampening", "only 0.0 is allowed, not 0.1: sgd has"),
        ({"type": "sgd", "nesterov": True}, "nesterov", "needs a momentum greater than 0"),
        ({"type": "Momentum"}, "type", "Momentum needs the key momentum"),
    ],
)
def test_optimizer_refuses(values, key, words):
    assert words in problems(OptimizerSection, **values)[key]


def test_loss_scale_as_number_and_as_group():
    assert RunnerWrapperSection(scale_sense=128).scale_sense == ScaleSenseSection(type="static", loss_scale_value=128.0)
    old = {
        "type": "DynamicLossScaleUpdateCell",
        "loss_scale_value": 4294967296,
        "scale_factor": 2,
        "scale_window": 1000,
    }
    scale = RunnerWrapperSection(scale_sense=old).scale_sense
    assert (scale.type, scale.loss_scale_value, scale.scale_factor, scale.scale_window) == ("dynamic", 2.0**32, 2, 1000)
    assert ScaleSenseSection(type="FixedLossScaleUpdateCell", loss_scale_value=8).type == "static"
    assert RunnerWrapperSection().scale_sense.loss_scale_value == 1.0
    assert "no effect on a static" in problems(ScaleSenseSection, type="static", scale_window=5)["scale_window"]
    assert "scale_sense" in problems(RunnerWrapperSection, scale_sense=True)
    assert "must be greater than 0" in problems(RunnerWrapperSection, scale_sense=0)["scale_sense.loss_scale_value"]


def test_all_problems_of_a_section_come_together():
    found = problems(GPT2Section, hiden_size=8, num_layers=0, top_p=1.1, hidden_dropout_rate=1.0, use_past="yes")
    assert found == {
        "hiden_size": "unknown key; did you mean 'hidden_size'?",
        "num_layers": "must be at least 1, not 0",
        "top_p": "must be at most 1, not 1.1",
        "hidden_dropout_rate": "must be less than 1, not 1.0",
        "use_past": "must be True or False, not 'yes'",
    }


def test_problems_across_keys_come_together():
    found = problems(
        GPT2Section, hidden_size=10, num_heads=3, seq_length=9, n_positions=8, vocab_size=5, eos_token_id=5
    )
    assert "must be divisible by num_heads, which is 3" in found["hidden_size"]
    assert "longer than max_position_embeddings 8" in found["seq_length"]
    assert "outside the vocabulary, whose size (vocab_size) is 5" in found["eos_token_id"]


def test_hugging_face_names():
    ours = GPT2Section(
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        max_position_embeddings=16,
        seq_length=8,
        ffn_hidden_size=48,
        hidden_act="gelu",
        hidden_dropout_rate=0.3,
        embedding_dropout_rate=0.2,
        attention_dropout_rate=0.4,
        layernorm_epsilon=1e-6,
    )
    theirs = GPT2Section(
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=16,
        n_ctx=8,
        n_inner=48,
        activation_function="gelu_new",
        resid_pdrop=0.3,
        embd_pdrop=0.2,
        attn_pdrop=0.4,
        layer_norm_epsilon=1e-6,
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("key", "given", "stored"),
    [
        ("activation_function", "gelu", "gelu_erf"),
        ("activation_function", "gelu_pytorch_tanh", "gelu"),
        ("activation_function", "quick_gelu", "fast_gelu"),
        ("activation_function", "swish", "silu"),
        ("hidden_act", "gelu", "gelu"),
        ("hidden_act", "fast_gelu", "fast_gelu"),
        ("hidden_act", "relu", "relu"),
    ],
)
def test_activation_names(key, given, stored):
    """Plain `gelu` is the tanh form in MindFormers and the exact form in Hugging Face."""
    assert GPT2Section(**{key: given}).hidden_act == stored


def test_two_spellings_must_agree_and_the_message_names_what_was_written():
    assert GPT2Section(n_embd=768, hidden_size=768).hidden_size == 768
    assert GPT2Section(hidden_act="gelu_new", activation_function="gelu_new").hidden_act == "gelu"
    found = problems(GPT2Section, hidden_size=768, n_embd=512)
    assert found == {"n_embd": "means the same as 'hidden_size', which is 768; keep one of the two"}
    assert problems(GPT2Section, hidden_act="gelu", activation_function="gelu").keys() == {"activation_function"}
    assert problems(GPT2Section, n_layer=0) == {"n_layer": "must be at least 1, not 0"}


def test_sizes_are_filled_in():
    assert GPT2Section(seq_length=64).max_position_embeddings == 64
    assert GPT2Section(max_position_embeddings=64).seq_length == 64
    assert GPT2Section(hidden_size=24).ffn_hidden_size == 96
    assert GPT2Section(hidden_size=24, expand_ratio=2).ffn_hidden_size == 48
    assert GPT2Section(hidden_size=24, ffn_hidden_size=72).expand_ratio == 3
    assert GPT2Section(hidden_size=24, ffn_hidden_size=50).expand_ratio is None
    assert GPT2Section(hidden_dropout_rate=0.25).embedding_dropout_rate == 0.25
    assert GPT2Section(hidden_dropout_rate=0.25, embedding_dropout_prob=0.0).embedding_dropout_rate == 0.0
    assert (
        "not expand_ratio x hidden_size = 48"
        in (problems(GPT2Section, hidden_size=24, expand_ratio=2, n_inner=50)["n_inner"])
    )


@pytest.mark.parametrize("given", ["float16", "fp16", "Float16", "mstype.float16"])
def test_dtype_spellings(given):
    assert GPT2Section(compute_dtype=given).compute_dtype == "float16"


def test_unknown_dtype_is_refused():
    assert "must be one of float32, float16, bfloat16" in problems(GPT2Section, compute_dtype="int8")["compute_dtype"]


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        (MoESection, {"expert_num": 2}, "expert_num"),
        (GPT2Section, {"use_prompt_flash_attention": True}, "use_prompt_flash_attention"),
        (GPT2Section, {"post_layernorm_residual": True}, "post_layernorm_residual"),
        (RunConfig, {"run_mode": "eval", "layer_scale": True}, "layer_scale"),
        (RunConfig, {"run_mode": "eval", "lr_scale": True}, "lr_scale"),
        (ParallelConfigSection, {"expert_parallel": 2}, "expert_parallel"),
    ],
)
def test_what_mindgpt_does_not_do_is_refused(section, values, key):
    assert problems(section, **values)[key].startswith("only ")


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"device_target": "GPU"}, "device_target"),
        ({"mode": 2}, "mode"),
        ({"mode": True}, "mode"),
        ({"max_device_memory": "59"}, "max_device_memory"),
        ({"max_device_memory": 59}, "max_device_memory"),
        ({"jit_config": {"jit_level": "O3"}}, "jit_config.jit_level"),
        ({"jit_config": "O2"}, "jit_config"),
        ({"device_id": -1}, "device_id"),
    ],
)
def test_context_refuses(values, key):
    assert problems(ContextSection, **values).keys() == {key}


def test_modes_by_mindformers_names():
    assert [ContextSection(mode=mode).mode for mode in ("GRAPH_MODE", "PYNATIVE_MODE", 1)] == [0, 1, 1]


def test_parallel_modes():
    assert ParallelSection(parallel_mode=0).parallel_mode == "data_parallel"
    assert ParallelSection(parallel_mode=1).parallel_mode == "semi_auto_parallel"
    assert ParallelSection(parallel_mode="semi_auto_parallel").parallel_mode == "semi_auto_parallel"
    assert (
        "must be 0 (data_parallel) or 1 (semi_auto_parallel)"
        in (problems(ParallelSection, parallel_mode=2)["parallel_mode"])
    )
    assert problems(ParallelSection, parallel_mode="auto_parallel").keys() == {"parallel_mode"}


def test_dataset_defaults_differ_between_training_and_evaluation():
    train, evaluation = TrainDatasetSection(), EvalDatasetSection()
    assert (train.data_loader.shuffle, train.drop_remainder) == (True, True)
    assert (evaluation.data_loader.shuffle, evaluation.drop_remainder) == (False, False)
    assert TrainDatasetSection(data_loader={"shuffle": False}).data_loader.shuffle is False
    assert problems(TrainDatasetSection, input_columns=[]).keys() == {"input_columns"}
    assert problems(TrainDatasetSection, data_loader={"type": "ADGenDataLoader"}).keys() == {"data_loader.type"}


def test_tokenizer_has_one_source():
    assert "needs merges_file beside it" in problems(TokenizerSection, vocab_file="v.json")["vocab_file"]
    assert "both name a tokenizer" in problems(TokenizerSection, path="dir", tokenizer_file="t.json")["tokenizer_file"]


def test_pet_section():
    assert PetSection(pet_type="LoRA").pet_type == "lora"
    assert "is not a regular expression" in problems(PetSection, target_modules=".*(")["target_modules"]
    assert "must be one of lora" in problems(PetSection, pet_type="adalora")["pet_type"]
    assert problems(ModelSection, model_config={"pet_config": {"lora_rnk": 3}}).keys() == {
        "model_config.pet_config.lora_rnk"
    }


def test_checkpoint_prefix_must_be_a_name():
    assert "must not contain a slash" in problems(CheckpointMonitorSection, prefix="../gpt2")["prefix"]


def test_accuracy_belongs_to_classification():
    assert MetricSection(type="Accuracy", eval_type="classification").type == "Accuracy"
    assert "has no effect" in problems(MetricSection, type="PerplexityMetric", eval_type="classification")["eval_type"]


def test_eval_callback_spellings():
    assert EvalCallBackSection(eval_step_interval=5).eval_steps == 5
    assert EvalCallBackSection(step_interval=5).eval_epochs == -1
    assert EvalCallBackSection().eval_epochs == 1
    assert problems(EvalCallBackSection, eval_steps=0).keys() == {"eval_steps"}


def test_eval_callback_keys_that_need_another():
    assert problems(EvalCallBackSection, min_delta=0.1) == {"min_delta": "has no effect without early_stop_patience"}
    assert problems(EvalCallBackSection, min_delta=-0.1, early_stop_patience=1).keys() == {"min_delta"}
    assert EvalCallBackSection(min_delta=0.1, early_stop_patience=1).save_best is True
    found = problems(EvalCallBackSection, greater_is_better=True, early_stop_patience=-1)
    assert found.keys() == {"early_stop_patience"}
    assert "without metric" in problems(EvalCallBackSection, greater_is_better=True)["greater_is_better"]


def test_summary_callback_of_mindformers_loads():
    old = {"keep_default_action": True, "max_file_size": 5, "collect_freq": 20}
    assert SummaryMonitorSection(**old) == SummaryMonitorSection(collect_freq=20)
    assert problems(SummaryMonitorSection, collect_freq=0).keys() == {"collect_freq"}


class TestRunConfig:
    """Checks and defaults across sections."""

    rate = {"lr_schedule": {"learning_rate": 1e-3}}

    def test_training_needs_a_learning_rate(self):
        assert "is missing" in problems(RunConfig, run_mode="train")["lr_schedule"]
        assert RunConfig(run_mode="eval").lr_schedule is None

    def test_a_relative_step_needs_no_learning_rate_and_allows_none(self):
        optimizer = {"type": "adafactor", "relative_step": True}
        assert RunConfig(run_mode="train", optimizer=optimizer).lr_schedule is None
        found = problems(RunConfig, run_mode="train", optimizer=optimizer, **self.rate)
        assert "has no effect with optimizer.relative_step: True" in found["lr_schedule"]

    def test_rate_of_the_optimizer_makes_a_constant_schedule(self):
        config = RunConfig(optimizer={"learning_rate": 1e-3})
        assert (config.lr_schedule.type, config.lr_schedule.learning_rate) == ("constant", 1e-3)
        found = problems(RunConfig, optimizer={"learning_rate": 1e-2}, **self.rate)
        assert "differs from lr_schedule.learning_rate" in found["optimizer.learning_rate"]

    def test_batch_size_of_the_data_set_is_the_fallback(self):
        assert RunConfig(**self.rate, train_dataset={"batch_size": 8}).runner_config.batch_size == 8
        both = RunConfig(**self.rate, train_dataset={"batch_size": 8}, runner_config={"batch_size": 2})
        assert both.runner_config.batch_size == 2
        evaluation = RunConfig(run_mode="eval", train_dataset={"batch_size": 8}, eval_dataset={"batch_size": 4})
        assert evaluation.runner_config.batch_size == 4

    def test_do_eval_and_the_callback_mean_the_same(self):
        assert [callback.type for callback in RunConfig(**self.rate).callbacks] == [
            "MFLossMonitor",
            "CheckpointMonitor",
        ]
        by_flag = RunConfig(**self.rate, do_eval=True, eval_step_interval=7)
        assert by_flag.callbacks[-1] == EvalCallBackSection(eval_steps=7)
        by_callback = RunConfig(**self.rate, callbacks=[{"type": "EvalCallBack", "eval_steps": 7}])
        assert by_callback.do_eval is True
        found = problems(RunConfig, **self.rate, do_eval=False, callbacks=[{"type": "EvalCallBack"}])
        assert "is False, but callbacks lists an EvalCallBack" in found["do_eval"]

    def test_architecture_must_fit_the_trainer(self):
        found = problems(RunConfig, **self.rate, trainer={"type": "TextClassificationTrainer"})
        assert "needs 'GPT2ForSequenceClassification'" in found["model.arch.type"]

    def test_callbacks(self):
        found = problems(
            RunConfig,
            **self.rate,
            callbacks=[
                {"type": "MFLossMonitr"},
                {"per_print_times": 1},
                {"type": "CheckpointMonitor", "prefx": "a"},
                "x",
            ],
        )
        assert "did you mean 'MFLossMonitor'?" in found["callbacks.0"]
        assert "type None is not known" in found["callbacks.1"]
        assert found["callbacks.2.prefx"] == "unknown key; did you mean 'prefix'?"
        assert "must be a group of keys with a type" in found["callbacks.3"]
        twice = problems(RunConfig, **self.rate, callbacks=[{"type": "LossMonitor"}, {"type": "MFLossMonitor"}])
        assert twice == {"callbacks": "lists MFLossMonitor 2 times; once is allowed"}

    def test_cloud_callback_is_accepted_and_gone(self):
        config = RunConfig(**self.rate, callbacks=[{"type": "ObsMonitor", "upload_frequency": 3}])
        assert config.callbacks == []

    def test_resume_training_is_a_switch_or_a_name(self):
        assert RunConfig(**self.rate, resume_training="gpt2_rank_0-1_5.ckpt").resume_training == "gpt2_rank_0-1_5.ckpt"
        assert (
            "must be True, False or the name" in problems(RunConfig, **self.rate, resume_training=1)["resume_training"]
        )

    def test_unknown_section_and_wrong_kind_of_section(self):
        found = problems(RunConfig, **self.rate, runer_config={}, optimizer=[1], context=None, eval_dataset="x")
        assert found == {
            "runer_config": "unknown key; did you mean 'runner_config'?",
            "optimizer": "must be a group of keys, not [1]",
            "eval_dataset": "must be a group of keys, not 'x'",
        }
