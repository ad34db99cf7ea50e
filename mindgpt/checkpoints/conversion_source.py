"""What a conversion of weights reads: its options, and the weights under our names with their config."""

from dataclasses import dataclass, replace
from pathlib import Path

from mindgpt.checkpoints.conversion_files import check_vocabulary_beside
from mindgpt.checkpoints.deepspeed_format import is_deepspeed
from mindgpt.checkpoints.formats import open_source
from mindgpt.checkpoints.found_config import checked_vocabulary
from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.gpt2_ml_config import VARIANT as GPT2_ML
from mindgpt.checkpoints.gpt2_ml_config import read_config_for
from mindgpt.checkpoints.gpt2_names import HEAD, MF_EMBEDDING, variant_of
from mindgpt.checkpoints.gpt2_views import agree_on_head
from mindgpt.checkpoints.gpt3_config import config_of_gpt3
from mindgpt.checkpoints.layer_norm_conversion import NormChange
from mindgpt.checkpoints.locations import config_beside
from mindgpt.checkpoints.megatron_views import MegatronView
from mindgpt.checkpoints.padded_vocabulary import config_with_rows, with_vocabulary
from mindgpt.checkpoints.tensor_source import TensorSource
from mindgpt.checkpoints.uer_names import HEAD as UER_HEAD
from mindgpt.checkpoints.weights import NAMINGS, naming_of
from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import VARIANTS
from mindgpt.tokenizers.loading import MOST_PADDING

SOURCE_FORMATS = ("auto", "huggingface", "uer", "tencentpretrain", "deepspeed", "mindformers", "gpt2_ml", "modelscope")
_NAMING_OF_FORMAT = {
    "huggingface": "hugging_face",
    "uer": "uer",
    "tencentpretrain": "uer",
    "deepspeed": "uer",
    "mindformers": "checkpoint",
    "gpt2_ml": "gpt2_ml",
    "modelscope": "megatron",
}
_OWNERS = {
    "uer": "UER-py's or TencentPretrain's",
    "gpt2_ml": "GPT2_ML's",
    "megatron": "Megatron's",
    "hugging_face": "Hugging Face's",
    "checkpoint": "MindFormers'",
}


@dataclass(frozen=True)
class ConversionOptions:
    """What the command line says about a conversion, besides the paths.

    Attributes:
        layers: the expected number of layers; None accepts any.
        dtype: of the weights written, "float32" or "float16"; None: "float32", and for ModelScope that of the source.
        config: a preset, config file or folder to use in place of the config that lies with the weights.
        vocabulary: the vocab.txt of the weights, or its folder; None: the one beside them.
        num_heads: the number of heads, for weights of UER-py or GPT2_ML without config.
        layer_norm: a key of `layer_norm_conversion.CONVERSIONS`, or None for the target's default.
        source_format: one of `SOURCE_FORMATS`.
        tensor_parallel: the number of ranks to shard ModelScope's weights over, or None.
        vocab_size: how many rows the token table is to have, with its padding or without; None: as many as it has.
    """

    layers: int | None = None
    dtype: str | None = None
    config: str | None = None
    vocabulary: Path | None = None
    num_heads: int | None = None
    layer_norm: str | None = None
    source_format: str = "auto"
    tensor_parallel: int | None = None
    vocab_size: int | None = None


@dataclass(frozen=True)
class OpenedWeights:
    """Weights to convert, under our names.

    Attributes:
        kind: a key of `NAMINGS`.
        source: the view under our names.
        config: or None.
        notes: for the user.
        vocabulary: a vocab.txt to copy, or None.
    """

    kind: str
    source: TensorSource
    config: GPT2Config | None
    notes: list[str]
    vocabulary: Path | None = None

    @property
    def variant(self) -> str | None:
        """As of `GPT2Config`, by the names of the weights."""
        return variant_of(self.source.entries)


def in_float32(options: ConversionOptions | None) -> ConversionOptions:
    options = options or ConversionOptions()
    return options if options.dtype else replace(options, dtype="float32")


def open_to_convert(path: Path, options: ConversionOptions) -> OpenedWeights:
    """The weights at a path under our names, with their config, and with the rows of padding that the options ask for.

    Raises:
        UserError: they cannot be opened, are of another format than the options say, or have no such padding.
    """
    opened, rows = _opened(path, options), options.vocab_size
    if rows is None:
        return opened
    if opened.vocabulary is not None:
        checked_vocabulary(opened.source.path, rows, opened.vocabulary, padding=rows)
    source = with_vocabulary(opened.source, opened.config, rows)
    return replace(opened, source=source, config=opened.config and config_with_rows(opened.config, rows))


def _opened(path: Path, options: ConversionOptions) -> OpenedWeights:
    stored = open_source(path)
    kind = naming_of(stored)
    if options.source_format != "auto":
        _check_format(path, kind, options.source_format)
    view = NAMINGS[kind].view(stored)
    if options.layer_norm is not None and variant_of(view.entries) == GPT2_ML:
        raise UserError(f"{view.path}: --layer_norm {options.layer_norm}: GPT2_ML's never were UER-py's. Leave it out.")
    notes = [*getattr(view, "notes", ())] if kind != "checkpoint" else []
    if kind in ("uer", GPT2_ML):
        config_of = NAMINGS[kind].config
        assert config_of is not None
        found = config_of(view, options.config, options.vocabulary, options.num_heads)
        if found.config is None:
            raise UserError(
                f"{view.path}: weights do not tell the number of heads, and no config lies with them. Pass "
                "--num_heads, or --config with their JSON."
            )
        return OpenedWeights(kind, view, found.config, notes + found.notes, found.vocabulary)
    if kind == "megatron" and options.num_heads is None:
        assert isinstance(view, MegatronView)
        found = config_of_gpt3(view, options.config)
        rows = view.sizes["V"]
        vocabulary = options.vocabulary and checked_vocabulary(view.path, rows, options.vocabulary, padding=rows)
        return OpenedWeights(kind, view, found.config, notes + found.notes, vocabulary)
    if options.num_heads is not None:
        raise UserError(
            "--num_heads is for weights of UER-py and GPT2_ML; of others, config.json or --config tells it."
        )
    chosen = options.config or config_beside(view.path)
    config, of_config = read_config_for(view, chosen) if chosen else (None, [])
    held = variant_of(view.entries)
    if config is not None and held is not None and held != config.variant:
        raise UserError(
            f"{view.path}: holds the weights of {VARIANTS[held].model} (variant {held}), and {chosen} is the config of "
            f"{VARIANTS[config.variant].model} (variant {config.variant}). Correct it, or pass another with --config."
        )
    config, view, of_head = agree_on_head(config, view)
    vocabulary = options.vocabulary
    if vocabulary is not None and MF_EMBEDDING in view.entries:
        rows = view.entries[MF_EMBEDDING].shape[0]
        vocabulary = checked_vocabulary(view.path, rows, vocabulary, padding=MOST_PADDING)
    elif MF_EMBEDDING in view.entries:
        check_vocabulary_beside(view.path, view.entries[MF_EMBEDDING].shape[0])
    return OpenedWeights(kind, view, config, [*notes, *of_config, *of_head], vocabulary)


def _check_format(path: Path, kind: str, wanted: str) -> None:
    """Raise a UserError if weights with names of the kind `kind` are not in the format `wanted`. Another model than
    GPT-2 is reported as such later."""
    naming = _NAMING_OF_FORMAT[wanted]
    if kind not in (naming, "other model"):
        found = f"its weights have {_OWNERS[kind]} names"
    elif wanted == "deepspeed" and not is_deepspeed(path):
        found = "it is no folder of DeepSpeed"
    else:
        return
    raise UserError(f"{path}: --source_format {wanted}: {found}. Leave the flag out, or name another file.")


def norm_change(config: GPT2Config | None, wanted: str | None, path: Path, decide) -> NormChange:
    """What the conversion does to layer norms.

    Raises:
        UserError: a conversion is asked for, and there is no config to record it in.
    """
    if config is not None:
        return decide(config, wanted)
    if wanted is not None:
        raise UserError(f"{path}: --layer_norm is recorded in the config, and there is none. Pass --config.")
    return NormChange({}, 1, "")


def check_sizes(
    view: TensorSource, sizes: dict[str, int], config: GPT2Config | None, options: ConversionOptions
) -> None:
    if options.layers is not None and options.layers != sizes["L"]:
        raise UserError(
            f"--layers {options.layers}: {view.path} has {sizes['L']} layers. Leave the flag out, or give the right "
            "file."
        )
    if config is None:
        return
    pairs = {
        "num_layers": (config.num_layers, sizes["L"]),
        "hidden_size": (config.hidden_size, sizes["H"]),
        "ffn_hidden_size": (config.ffn_hidden_size, sizes["F"]),
        "vocab_size": (config.vocab_size, sizes["V"]),
        "max_position_embeddings": (config.max_position_embeddings, sizes["P"]),
        "num_labels": (config.num_labels, sizes.get("C", config.num_labels)),  # in a classifier only
    }
    if "C" not in sizes:  # a classifier has no output head
        tied = view.entries.keys().isdisjoint((HEAD.hf_name, *HEAD.mf_names, *UER_HEAD.names))
        pairs["tie_word_embeddings"] = (config.tie_word_embeddings, tied)
    wrong = [f"{key} is {named}, the weights have {held}" for key, (named, held) in pairs.items() if named != held]
    if wrong:
        raise UserError(
            f"{view.path}: the config does not describe these weights: {'; '.join(wrong)}. "
            "Correct it, or pass another with --config."
        )
