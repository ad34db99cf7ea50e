"""What every run mode does around its job: refuse what is not there, prepare the device, keep the configuration."""

from collections.abc import Iterator
from pathlib import Path

from mindgpt.config.errors import UserError
from mindgpt.config.loader import dump_config
from mindgpt.config.run import RunConfig
from mindgpt.config.training import CheckpointMonitorSection
from mindgpt.data.files import atomic_write
from mindgpt.runtime.device import prepare_device
from mindgpt.runtime.precision import replaced_on_cpu
from mindgpt.runtime.ranks import say, world_size


def prepare(config: RunConfig) -> None:
    """Make the process ready to build a model: device and seed. Writes nothing yet: the run may still be refused.

    Raises:
        UserError: the configuration asks for something mindgpt does not do yet, or the device is not there.
    """
    problems = list(_not_there(config))
    if problems:
        raise UserError("\n".join(problems))
    notes = prepare_device(config.context, config.output_dir, config.seed)
    notes += replaced_on_cpu(config.model.config)
    if config.use_parallel and world_size() == 1:
        notes.append("use_parallel is True, but no cluster is around this process: running on one card")
    for note in [*notes, *_without_effect(config)]:
        say(note)


def keep_config(config: RunConfig) -> Path:
    """Write the resolved configuration, every default filled in, to `<output_dir>/<run_mode>_config.yaml`.

    For the moment when nothing about data and weights can be refused any more, so that a run that never began does not
    write over what an earlier one left.
    """
    path = Path(config.output_dir) / f"{config.run_mode}_config.yaml"
    with atomic_write(path, "w") as file:
        file.write(dump_config(config))
    return path


def _without_effect(config: RunConfig) -> Iterator[str]:
    """What the configuration sets and one card does the same way whatever it says; nothing is dropped in silence."""
    if any(isinstance(section, CheckpointMonitorSection) and section.async_save for section in config.callbacks):
        yield "async_save: True has no effect: a checkpoint is whole before the next step begins"
    if config.run_mode == "predict" and not config.model.config.use_past:
        yield "use_past: False has no effect: text is always generated with a key/value cache"
    if config.micro_batch_interleave_num > 1:
        yield "micro_batch_interleave_num has no effect on one card"
    if config.recompute_config.recompute_slice_activation or config.recompute_config.parallel_optimizer_comm_recompute:
        yield "recompute_config: the keys about slices and communication have no effect on one card"


def _not_there(config: RunConfig) -> Iterator[str]:
    """What the configuration may say and this version does not do; each with what to do instead."""
    if world_size() > 1:
        yield "this version runs one process; start run_mindformer.py by itself rather than under msrun"
    if config.trainer.type == "TextClassificationTrainer":
        yield "trainer.type: TextClassificationTrainer is not in this version; CausalLanguageModelingTrainer is"
    elif config.metric.type != "PerplexityMetric":
        yield f"metric.type: {config.metric.type} is for classification; a language model has PerplexityMetric"
    if config.model.config.pet_config is not None:
        yield "model.model_config.pet_config: LoRA is not in this version; take pet_config out to tune all weights"
    if config.resume_training:
        yield (
            "resume_training: exact resume is not in this version; --load_checkpoint starts a new run from the weights "
            "of a checkpoint"
        )
    for key in ("auto_trans_ckpt", "only_save_strategy", "src_strategy_path_or_dir"):
        if getattr(config, key):
            yield f"{key}: sharded checkpoints are not in this version; give the path of a whole .ckpt"
    if config.profile:
        yield "profile: True: profiling is not in this version; start the run under MindSpore's own profiler"
