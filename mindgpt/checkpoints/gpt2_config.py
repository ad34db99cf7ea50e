"""`GPT2Config`: the settings of a GPT-2 network, its presets, and their conversion from and to `config.json`.

The fields, defaults and checks are those of the YAML section `model.model_config` (`mindgpt.config.GPT2Section`). A
`config.json` has Hugging Face's keys, and settings that these cannot express under the key `mindgpt`, so that
transformers and mindgpt open the same file.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, ValidationError

from mindgpt.checkpoints.foreign_configs import refuse_foreign_config
from mindgpt.config.errors import UserError
from mindgpt.config.generation_section import GenerationSection
from mindgpt.config.model_sections import VARIANTS, GPT2Section
from mindgpt.config.paths import expanded_path
from mindgpt.config.section import dotted, nearest, problems_of, shown
from mindgpt.io.files import read_json, write_json

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"

PRESETS: dict[str, dict[str, int]] = {
    "gpt2": {"num_layers": 12, "num_heads": 12, "hidden_size": 768},
    "gpt2_small": {"num_layers": 12, "num_heads": 12, "hidden_size": 768},
    "gpt2_medium": {"num_layers": 24, "num_heads": 16, "hidden_size": 1024},
    "gpt2_large": {"num_layers": 36, "num_heads": 20, "hidden_size": 1280},
    "gpt2_xl": {"num_layers": 48, "num_heads": 25, "hidden_size": 1600},
    "gpt2_13b": {"num_layers": 40, "num_heads": 40, "hidden_size": 5120, "seq_length": 2048},
    "gpt2_52b": {"num_layers": 64, "num_heads": 32, "hidden_size": 8192, "seq_length": 1024},
}

_TO_HUGGING_FACE = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "layernorm_epsilon": "layer_norm_epsilon",
    "tie_word_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
    "embedding_dropout_rate": "embd_pdrop",
    "hidden_dropout_rate": "resid_pdrop",
    "attention_dropout_rate": "attn_pdrop",
    "scale_attn_weights": "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx": "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn": "reorder_and_upcast_attn",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
_ACTIVATION_TO_HUGGING_FACE = {
    "gelu": "gelu_new",
    "gelu_erf": "gelu",
    "fast_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
_CONVERTED_SEPARATELY = {
    "type",
    "hidden_act",
    "ffn_hidden_size",
    "expand_ratio",
    "num_labels",
    "label_names",
    "checkpoint_name_or_path",
    "offset",  # of a run, not of a network
    "variant",
    "reset_attention_mask",
    "reset_position_ids",
}
"""Fields that config.json holds in another form, or that describe a run rather than the network."""

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_HUGGING_FACE_EOS = 50256  # transformers writes it as bos and eos for a vocabulary of any size

_REQUIRED_VALUES = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
}
"""Keys of a Hugging Face config.json that mean another network unless they have this value."""

_POSITIONS = "position_embedding_type"
_ANOTHER_NETWORK = re.compile(
    r"rope|rotary|alibi|relative_attention|experts?$|(num|n|routed|local|shared|per_tok)_experts|experts_per|(^|_)moe(_|$)|softcap|(^|_)mup|multi_query|multi_head_latent"
    r"|sliding_window|parallel_(residual|attn|attention)|qk_(layer)?norm|rms_norm|post_layer_?norm|residual_multiplier"
    r"|embedding_multiplier|attention_multiplier|logits?_scal|scale_embedding|embedding_scale|kv_lora|n_head_kv|kv_heads"
    r"|key_value_heads"
)
"""Besides `_POSITIONS`, keys of other model families that mean another network unless they are switched off."""

# fmt: off
_SKIPPED_KEYS = frozenset([
    "_name_or_path", "_attn_implementation", "_num_labels", "architectures", "transformers_version", "torch_dtype",
    "dtype", "use_cache", "gradient_checkpointing", "task_specific_params", "problem_type", "finetuning_task",
    "tokenizer_class", "prefix", "n_special", "predict_special_tokens", "output_past", "is_decoder", "torchscript",
    "use_bfloat16", "tf_legacy_loss", "id2label", "label2id", "summary_type", "summary_use_proj",
    "summary_activation", "summary_proj_to_labels", "summary_first_dropout", "output_attentions",
    "output_hidden_states", "return_dict", "return_dict_in_generate", "output_scores",
    "cross_attention_hidden_size", "chunk_size_feed_forward", "remove_invalid_values",
    "exponential_decay_length_penalty", "sep_token_id", "decoder_start_token_id", "begin_suppress_tokens",
    "suppress_tokens", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "min_length", "max_length",
    "num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "early_stopping", "num_return_sequences", "typical_p", "do_sample",
    "temperature", "top_k", "top_p", "repetition_penalty", "auto_map", "attn_implementation", "pretraining_tp",
    "tie_encoder_decoder",
])
# fmt: on
"""Keys of a Hugging Face config.json that do not change the network. Generation defaults are among them: they belong in
generation_config.json (`generation_from_hf`), and ours under `mindgpt`."""


_WHOLE_NUMBERS = {
    *("n_positions", "n_ctx", "n_embd", "n_layer", "n_head", "n_inner", "vocab_size"),
    *_TOKEN_IDS,
}
_HUGGING_FACE_KEYS = {
    *_TO_HUGGING_FACE.values(),
    *("n_ctx", "n_inner", "activation_function", "hidden_size", "max_position_embeddings"),
    *("num_attention_heads", "num_hidden_layers"),
}
"""Keys of a Hugging Face config.json that mindgpt obeys."""

_SKIPPED_GENERATION_KEYS = frozenset([
    "_from_model_config", "transformers_version", "bos_token_id", "use_cache", "cache_implementation",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "decoder_start_token_id", "disable_compile",
])  # fmt: skip
"""Keys of generation_config.json that do not change the generated text."""


class GPT2Config(GPT2Section):
    """The settings of a GPT-2 network; `GPT2Section` documents the fields.

    Keywords are MindFormers' (`hidden_size`, `num_layers`) or Hugging Face's (`n_embd`, `n_layer`). An unknown keyword,
    a value out of range or two spellings that disagree raise `UserError`, all problems at once.
    """

    model_config = ConfigDict(frozen=False)  # unlike a run's sections: Python callers may set attributes

    presets: ClassVar = tuple(PRESETS)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise _user_error(error, "GPT2Config") from None

    @classmethod
    def from_section(cls, section: GPT2Section) -> "GPT2Config":
        """The config that the YAML section `model.model_config` describes."""
        return cls(**section.model_dump())

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **changes: Any) -> "GPT2Config":
        """A preset (`GPT2Config.presets`), a folder that holds config.json, or that file itself.

        A generation_config.json beside config.json takes precedence, as in transformers. Unknown keys that do not
        change the network, and invalid generation settings, are left out; `read_config` returns notes about them.

        Args:
            name_or_path: a file or folder of that name takes precedence over a preset.
            changes: settings that replace those of the file or preset.

        Raises:
            UserError: there is no such config, it is broken or not a GPT-2's, or settings do not fit together.
        """
        return read_config(name_or_path, **changes)[0]

    def save_pretrained(self, folder: str | Path, architecture: str = "GPT2LMHeadModel") -> Path:
        """Write config.json into `folder`, atomically. Returns the file's path.

        Args:
            folder: created if it is missing.
            architecture: the class with which transformers opens the weights beside it.

        Raises:
            UserError: the folder cannot be written.
        """
        file = expanded_path(folder) / CONFIG_FILE
        write_json(file, self.to_hf_dict(architecture))
        return file

    def to_hf_dict(self, architecture: str = "GPT2LMHeadModel") -> dict[str, Any]:
        """The content of config.json: Hugging Face's keys, and under `mindgpt` settings that these cannot express."""
        values = self.model_dump(mode="json")
        hugging_face: dict[str, Any] = {"architectures": [architecture], "model_type": self.variant}
        hugging_face |= {theirs: values[ours] for ours, theirs in _TO_HUGGING_FACE.items()}
        hugging_face["n_inner"] = None if self.ffn_hidden_size == 4 * self.hidden_size else self.ffn_hidden_size
        hugging_face["activation_function"] = _ACTIVATION_TO_HUGGING_FACE[self.hidden_act]
        if self.num_labels != 2 or self.label_names:  # the default of transformers
            names = self.names_of_labels()
            hugging_face["id2label"] = {str(label): name for label, name in enumerate(names)}
            hugging_face["label2id"] = {name: label for label, name in enumerate(names)}
        ours = {
            key: value
            for key, value in values.items()
            if key not in _TO_HUGGING_FACE and key not in _CONVERTED_SEPARATELY and value is not None
        }
        return hugging_face | {"mindgpt": ours}

    def names_of_labels(self) -> list[str]:
        """`label_names`, or else Hugging Face's default names: LABEL_0, LABEL_1, ..."""
        return self.label_names or [f"LABEL_{label}" for label in range(self.num_labels)]

    @property
    def head_size(self) -> int:
        """Width of one attention head: hidden_size / num_heads."""
        return self.hidden_size // self.num_heads

    def num_parameters(self) -> int:
        """Number of parameters of the language model; a tied output head counts once."""
        hidden, ffn = self.hidden_size, self.ffn_hidden_size
        tables = self.vocab_size * (1 if self.tie_word_embeddings else 2)
        embeddings = (tables + self.max_position_embeddings) * hidden
        attention = 4 * (hidden * hidden + hidden)
        feed_forward = hidden * ffn + ffn + ffn * hidden + hidden
        layernorm = 2 * hidden
        block = attention + feed_forward + 2 * layernorm
        other_norms = self.embedding_norm + self.final_norm
        return embeddings + self.num_layers * block + other_norms * layernorm


def read_config(name_or_path: str | Path, **changes: Any) -> tuple[GPT2Config, list[str]]:
    """See `GPT2Config.from_pretrained`.

    Returns:
        The config, and sentences for the user about what was left out.
    """
    path = expanded_path(name_or_path)
    if path.is_dir() or path.is_file():
        file = path / CONFIG_FILE if path.is_dir() else path
        return _config_from_files(file, changes)
    if str(name_or_path) not in PRESETS:
        hint = nearest(str(name_or_path), PRESETS)
        raise UserError(f"{name_or_path}: is neither a file, nor a folder, nor the name of a preset; {hint}")
    return _validated(_changed(PRESETS[str(name_or_path)], changes), str(name_or_path)), []


def _config_from_files(file: Path, changes: Mapping[str, Any]) -> tuple[GPT2Config, list[str]]:
    return config_from_content(read_json(file), file, changes)


def config_from_content(content: Any, file: Path, changes: Mapping[str, Any]) -> tuple[GPT2Config, list[str]]:
    """As `read_config`, for the content of a config file, which may have been changed since it was read."""
    refuse_foreign_config(content, file)
    settings, notes = settings_from_hf(content, str(file))
    generation, of_generation = generation_from_hf(file, settings.get("vocab_size"))
    try:
        config = _validated(_changed(_changed(settings, generation), changes), str(file))
    except UserError:
        if not generation:
            raise
        # Generation settings that are valid by themselves may not fit config.json.
        config = _validated(_changed(settings, changes), str(file))
        of_generation = [f"{file.with_name(GENERATION_FILE)}: does not fit {file.name}: left out"]
    return config, notes + of_generation


def _validated(settings: Mapping[str, Any], source: str) -> GPT2Config:
    try:
        return GPT2Config.from_section(GPT2Section.model_validate(dict(settings)))
    except ValidationError as error:
        raise _user_error(error, source) from None


def settings_from_hf(content: Any, source: str) -> tuple[dict[str, Any], list[str]]:
    """The keywords of `GPT2Config` for a config.json.

    Args:
        content: of config.json.
        source: names it in messages.

    Returns:
        The keywords, and sentences about keys that were left out.

    Raises:
        UserError: a key means another network, or quantised weights.
    """
    if not isinstance(content, dict):
        raise UserError(f"{source}: must hold a JSON object, not {shown(content)}")
    content = {key: _plain_number(value) if key in _WHOLE_NUMBERS else value for key, value in content.items()}
    variant = content.get("model_type") or "gpt2"
    problems = []
    if not isinstance(variant, str) or variant not in VARIANTS:
        problems.append(
            f"{source}: model_type: must be {' or '.join(map(repr, VARIANTS))}, not {shown(variant)}; mindgpt computes "
            "no other network"
        )
    problems += [
        f"{source}: {key}: must be {wanted!r}, not {shown(content[key])}; mindgpt computes no other network"
        for key, wanted in _REQUIRED_VALUES.items()
        if not (content.get(key) in (None, wanted) or not (content[key] or wanted))  # [] is as good as {}
    ]
    problems += [
        f"{source}: {key}: {shown(content[key])} asks for another network than GPT-2; mindgpt does not compute it"
        for key in content
        if _is_another_network(key, content)
    ]
    if content.get("quantization_config"):
        problems.append(
            f"{source}: quantization_config: the weights are quantised, which mindgpt does not read. Dequantise the "
            "model with the library that made it and save it in float16 or float32."
        )
    ours = content.get("mindgpt") or {}
    if not isinstance(ours, dict):
        problems.append(f"{source}: mindgpt: must be an object, not {shown(ours)}")
    if problems:
        raise UserError("\n".join(problems))
    if ours.get("top_k") == 0:  # earlier versions of mindgpt wrote it for None
        ours = {key: value for key, value in ours.items() if key != "top_k"}
    skipped = _SKIPPED_KEYS | _REQUIRED_VALUES.keys() | {"mindgpt", "quantization_config", "model_type"}
    given = {
        key: value
        for key, value in content.items()
        if key not in skipped and not key.startswith("_") and value is not None
    }
    known = {*GPT2Section.known_keys(), *GPT2Section.other_names, *GPT2Section.ignored}
    settings = {key: value for key, value in given.items() if key in _HUGGING_FACE_KEYS}
    of_ours = [key for key in given if key in known and key not in _HUGGING_FACE_KEYS]
    unknown = [key for key, value in given.items() if key not in known and not _has_no_effect(key, value)]
    notes = [f"{source}: mindgpt has no {', '.join(unknown)}: left out"] if unknown else []
    if of_ours:
        names = ", ".join(of_ours)
        notes.append(f"{source}: {names}: left out, as transformers does it; settings of mindgpt's are under mindgpt")
    labels, of_labels = _labels_from_hf(content.get("id2label"))
    settings |= labels
    notes += [f"{source}: {note}" for note in of_labels]
    notes += [f"{source}: {note}" for note in _drop_impossible(settings)]
    return settings | {"variant": variant} | ours, notes


def _plain_number(value: Any) -> Any:
    """A whole number that is written as a float, such as 2.0, as an int; anything else unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _is_another_network(key: str, content: Mapping[str, Any]) -> bool:
    """Whether a key of a config.json means another network than GPT-2."""
    value = content[key]
    if key == _POSITIONS:
        return value not in (None, "absolute", "learned")
    if key.startswith("_") or not _ANOTHER_NETWORK.search(key) or value in (None, False, 0, "", [], {}):
        return False
    if key.endswith(("kv_heads", "key_value_heads", "n_head_kv")):
        return value != content.get("n_head", content.get("num_attention_heads", value))
    if "expert" in key or key.endswith(("multiplier", "scale", "scaling")):
        return value != 1
    return True


def _has_no_effect(key: str, value: Any) -> bool:
    """Whether an unknown key switches something off, or is known to change nothing."""
    return value in (False, 0, "", [], {}) or key == _POSITIONS or _ANOTHER_NETWORK.search(key) is not None


def _drop_impossible(settings: dict[str, Any]) -> Iterator[str]:
    """Remove settings that transformers ignores too, or that are impossible; yields a sentence for each."""
    positions, rows = settings.get("n_positions"), settings.get("n_ctx")
    if isinstance(positions, int) and isinstance(rows, int) and rows > positions:
        del settings["n_ctx"]
        yield f"n_ctx {rows} is longer than n_positions {positions}, and left out, as in transformers"
    if settings.get("initializer_range") == 0:
        del settings["initializer_range"]
        yield "initializer_range 0 would make all weights equal, and is left out"
    vocab_size = settings.get("vocab_size")
    yield from _drop_default_ids(settings, vocab_size)
    for key in _TOKEN_IDS:
        token = settings.get(key)
        if token == []:
            del settings[key]
            continue
        ids = token if key == "eos_token_id" and isinstance(token, list) else [token]
        usable = [one for one in ids if _may_be_id(one, vocab_size)]
        if key not in settings or usable == ids:
            continue
        del settings[key]
        if usable:
            settings[key] = usable
        instead = "; padding is with the end-of-text token" if key == "pad_token_id" else ""
        left = f"; {usable} is used" if usable else ""
        yield f"{key} {shown(token)} is no id of the {vocab_size} tokens, and left out{instead}{left}"


def _drop_default_ids(settings: dict[str, Any], vocab_size: Any) -> Iterator[str]:
    """Remove `_HUGGING_FACE_EOS` where it is no id of the vocabulary; yields a sentence if it is removed."""
    if _may_be_id(_HUGGING_FACE_EOS, vocab_size):
        return
    dropped = [key for key in _TOKEN_IDS if settings.get(key) == _HUGGING_FACE_EOS]
    for key in dropped:
        del settings[key]
    if dropped:
        yield (
            f"{' and '.join(dropped)} {_HUGGING_FACE_EOS}, transformers' default, is no id of the {vocab_size} tokens, "
            "and left out; the tokenizer's is used"
        )


def _may_be_id(token: Any, vocab_size: Any) -> bool:
    """Whether a value is a token id; of any vocabulary if its size is not known."""
    if not isinstance(token, int) or isinstance(token, bool):
        return False
    return not isinstance(vocab_size, int) or 0 <= token < vocab_size


def generation_from_hf(config_file: Path, vocab_size: Any) -> tuple[dict[str, Any], list[str]]:
    """The generation settings in the generation_config.json beside a config.json.

    Args:
        config_file: config.json.
        vocab_size: its vocabulary size; None: the default of `GPT2Section`.

    Returns:
        The settings, and sentences about unknown keys and invalid values, which are left out.
    """
    file = config_file.with_name(GENERATION_FILE)
    if config_file.name != CONFIG_FILE or not file.is_file():
        return {}, []
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file}: must hold a JSON object, not {shown(content)}")
    asked = {key: value for key, value in content.items() if value is not None and key not in _SKIPPED_GENERATION_KEYS}
    if asked.get("top_k") == 0:  # transformers' "all tokens"
        del asked["top_k"]
    if asked.get("num_beams", 1) == 1:  # they have no effect then, and are refused as user settings
        asked = {key: value for key, value in asked.items() if key not in ("length_penalty", "early_stopping")}
    notes = [f"{file}: {note}" for note in _drop_default_ids(asked, vocab_size)]
    for key, value in asked.items():
        kept = _usable_ids(value, vocab_size)
        if kept != value and kept:
            notes.append(f"{file}: {key}: {shown(value)} holds ids that are none of the vocabulary's; {kept} is used")
            asked[key] = kept
    names = {"max_length": "max_decode_length"}
    fields = {*GenerationSection.model_fields, "pad_token_id", "max_length"}
    unknown = [key for key, value in asked.items() if key not in fields and value not in (False, 0, "", [], {})]
    notes += [f"{file}: mindgpt has no {', '.join(unknown)}: left out"] if unknown else []
    known = {names.get(key, key): value for key, value in asked.items() if key in fields}
    sizes = {} if vocab_size is None else {"vocab_size": vocab_size}
    while problems := {k: what for k, what in _problems_of_generation(known | sizes).items() if k in known}:
        called = {ours: theirs for theirs, ours in names.items()}
        notes += [f"{file}: {called.get(key, key)}: {what}: left out" for key, what in problems.items()]
        known = {key: value for key, value in known.items() if key not in problems}
    return known, notes


def _usable_ids(value: Any, vocab_size: Any) -> Any:
    """`value`; if it is a list of ids, or of lists of them, without those that name no token."""
    if not isinstance(value, list):
        return value
    if all(isinstance(item, list) for item in value):
        return [item for item in value if all(_may_be_id(token, vocab_size) for token in item)]
    if all(isinstance(item, int) for item in value):
        return [token for token in value if _may_be_id(token, vocab_size)]
    return value


def _problems_of_generation(settings: Mapping[str, Any]) -> dict[str, str]:
    """Problems of generation settings, by key."""
    try:
        GPT2Section.model_validate(settings)
    except ValidationError as error:
        return {str(location[0]): message for location, message in problems_of(error)}
    return {}


def _labels_from_hf(id2label: Any) -> tuple[dict[str, Any], list[str]]:
    """`num_labels`, and `label_names` unless they are transformers' default names or unusable; and notes about that."""
    if not isinstance(id2label, dict) or not id2label:
        return {}, []
    numbers = [str(number) for number in range(len(id2label))]
    names = [id2label.get(number) for number in numbers]
    if names == [f"LABEL_{number}" for number in numbers]:
        return {"num_labels": len(names)}, []
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        left_out = (
            f"id2label {shown(id2label)} does not give each number from 0 a name of its own: the names are left out"
        )
        return {"num_labels": len(numbers)}, [left_out]
    return {"num_labels": len(names), "label_names": names}, []


def _user_error(error: ValidationError, source: str) -> UserError:
    lines = (f"{source}: {dotted(location)}: {message}" for location, message in problems_of(error))
    return UserError("\n".join(lines))


def _changed(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` updated with `changes`, in any spelling of the keys."""
    names = GPT2Section.other_names
    replaced = {names.get(key, key) for key in changes}
    return {key: value for key, value in settings.items() if names.get(key, key) not in replaced} | dict(changes)
