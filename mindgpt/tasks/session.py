"""What every run mode does around its job: refuse what is not there, prepare the device, keep the configuration."""

from collections.abc import Iterator
from pathlib import Path

from mindgpt.config import layout
from mindgpt.config.callback_sections import CheckpointMonitorSection
from mindgpt.config.errors import UserError
from mindgpt.config.execution_sections import ParallelConfigSection, ParallelSection, StrategyCheckpointSection
from mindgpt.config.loader import dump_config
from mindgpt.config.run_config import RunConfig
from mindgpt.io.files import atomic_write, read_text, set_aside
from mindgpt.runtime.collectives import join_cut, join_data_parallel, join_tensor_parallel
from mindgpt.runtime.device import prepare_device
from mindgpt.runtime.precision import replaced_on_cpu
from mindgpt.runtime.ranks import rank, say, world_size
from mindgpt.runtime.targets import choose_target
from mindgpt.tasks.cards import cut_of, is_cut, shares_layers


def prepare(config: RunConfig) -> None:
    """Make the process ready to build a model: device, seed, and the other processes of the job. Writes nothing yet:
    the run may still be refused.

    Raises:
        UserError: the configuration asks for something mindgpt does not do yet, the device is not there, or the layout
            does not fit the processes.
    """
    target = choose_target(config.context.device_target)
    problems = [*_not_there(config), *layout_problems(config, target)]
    if problems:
        raise UserError("\n".join(problems))
    notes = prepare_device(config.context, config.output_dir, config.seed)
    notes += replaced_on_cpu(config.model.config)
    if config.use_parallel and world_size() == 1:
        notes.append("use_parallel is True, but no cluster is around this process: running on one card")
    if shares_layers(config, target):
        join_tensor_parallel()
        notes.append(f"tensor parallel: {world_size()} cards, each with its share of heads and widths")
    elif is_cut(config, target):
        join_cut(cut_of(config))
        notes.append(f"{world_size()} cards: {layout.grid_of(config)}")
    elif world_size() > 1:
        join_data_parallel()
        notes.append(f"data parallel: {world_size()} processes, each with the whole model and its share of the data")
    for note in [*notes, *_without_effect(config, is_cut(config, target))]:
        say(note)


def keep_config(config: RunConfig) -> Path:
    """Write the resolved configuration, every default filled in, to `<output_dir>/<run_mode>_config.yaml`.

    For the moment when nothing about data and weights can be refused any more, so that a run that never began does not
    write over what an earlier one left.
    """
    path = Path(config.output_dir) / f"{config.run_mode}_config.yaml"
    if rank() != 0:
        return path
    text = dump_config(config)
    if config.run_mode in ("train", "finetune") and path.exists() and read_text(path) != text:
        set_aside(path)  # of an earlier run, whose checkpoints and logs stay, too
    with atomic_write(path, "w") as file:
        file.write(text)
    return path


def _without_effect(config: RunConfig, cut: bool) -> Iterator[str]:
    """What the configuration sets and the run does the same way whatever it says; nothing is dropped in silence.

    Args:
        cut: whether the model is cut over cards and trained.
    """
    if config.transform_process_num > 1:
        yield "transform_process_num has no effect: each card reads its own part of a checkpoint"
    if config.run_mode == "predict" and not config.model.config.use_past:
        yield "use_past: False has no effect: text is always generated with a key/value cache"
    if config.run_mode not in ("train", "finetune"):
        return
    yield from _without_effect_on_files(config, cut)
    yield from _without_effect_on_a_cut_model(config) if cut else _without_effect_unless_cut(config)
    if config.train_dataset.python_multiprocessing:
        yield "train_dataset.python_multiprocessing: True has no effect: rows are read by MindSpore's own threads"
    section = config.parallel_config
    if config.use_parallel and section.micro_batch_num > 1 and section.pipeline_stage == 1:
        yield (
            "parallel_config.micro_batch_num has no effect without pipeline stages; "
            "runner_config.gradient_accumulation_steps divides a step there"
        )


def _without_effect_on_files(config: RunConfig, cut: bool) -> Iterator[str]:
    """Of what a training run writes."""
    for section in config.callbacks:
        if isinstance(section, CheckpointMonitorSection):
            if section.async_save:
                yield "async_save: True has no effect: a checkpoint is whole before the next step begins"
            if cut and section.integrated_save and "integrated_save" in section.model_fields_set:
                yield "integrated_save: True has no effect: each card writes its part (tools/transform_ckpt.py merges)"
    given, default = config.parallel, ParallelSection()
    inner = given.strategy_ckpt_config or StrategyCheckpointSection()
    names = {
        "strategy_ckpt_save_file": given.strategy_ckpt_save_file,
        "strategy_ckpt_config.save_file": inner.save_file,
    }
    for key, name in names.items():
        if name != default.strategy_ckpt_save_file:
            yield f"parallel.{key} has no effect: strategy files go to {config.output_dir}/strategy"
    if inner.only_trainable_params:
        yield "parallel.strategy_ckpt_config.only_trainable_params: True has no effect: frozen weights are told of, too"


def _without_effect_on_a_cut_model(config: RunConfig) -> Iterator[str]:
    parallel, section = config.parallel, config.parallel_config
    if parallel.full_batch is False:
        yield "parallel.full_batch: False has no effect: every card reads the whole batch and computes its part"
    if parallel.gradients_mean:
        yield "parallel.gradients_mean: True has no effect: the loss is a mean over all rows, so gradients are summed"
    if parallel.loss_repeated_mean is False:
        yield "parallel.loss_repeated_mean: False has no effect: what several cards compute counts once"
    if not section.vocab_emb_dp and section.model_parallel > 1 and not layout.cuts_vocabulary(config):
        yield (
            f"parallel_config.vocab_emb_dp: False has no effect: model_parallel {section.model_parallel} does not "
            f"divide vocab_size {config.model.config.vocab_size}, so every card keeps the whole vocabulary"
        )


def _without_effect_unless_cut(config: RunConfig) -> Iterator[str]:
    if config.micro_batch_interleave_num > 1:
        yield "micro_batch_interleave_num has no effect: the model is not cut over cards"
    kept = config.recompute_config
    if kept.recompute_slice_activation or kept.parallel_optimizer_comm_recompute or not kept.mp_comm_recompute:
        yield "recompute_config: the keys about slices and communication have no effect: the model is not cut"
    if not config.use_parallel:
        return  # a word about everything that was set for cards
    if config.parallel.gradients_mean is False:
        yield "parallel.gradients_mean: False has no effect: data-parallel processes give what one process gives"
    default = ParallelConfigSection().gradient_aggregation_group
    if config.parallel_config.gradient_aggregation_group != default:
        yield "parallel_config.gradient_aggregation_group has no effect: without a cut model gradients travel together"


def layout_problems(config: RunConfig, target: str) -> Iterator[str]:
    """What about the layout does not fit the processes that there are, or the device `target`."""
    cards = world_size()
    if cards == 1:
        return
    if shares_layers(config, target):
        yield from layout.tensor_parallel_problems(config, cards)
        return
    if is_cut(config, target):
        yield from layout.layout_problems(config, cards)
        if config.do_eval:
            yield (
                "do_eval: a model that is cut over cards is not evaluated while it is trained. Set it to False, and "
                "evaluate a checkpoint with --run_mode eval, which takes the folder of its slices"
            )
        return
    yield from layout.data_parallel_problems(config, cards, target)


def _not_there(config: RunConfig) -> Iterator[str]:
    """What the configuration may say and this version does not do; each with what to do instead."""
    if config.only_save_strategy and world_size() == 1:
        yield "only_save_strategy: one card has no strategy to save; it is for runs whose layout cuts the model"
    if config.profile:
        yield "profile: True: profiling is not in this version; start the run under MindSpore's own profiler"
