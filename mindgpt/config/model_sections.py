"""The section `model`: which network, its sizes and precision, how it generates, and how it is fine-tuned."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Field, field_validator

from mindgpt.config.generation_section import KNOWN_ELSEWHERE, GenerationSection
from mindgpt.config.no_effect import NoEffect, Run, when
from mindgpt.config.section import (
    ANY_VALUE,
    TO_BE_COMPLETED,
    CompletedCount,
    Count,
    CountOrZero,
    DropoutRate,
    PathText,
    Positive,
    Section,
    one_of,
    only,
    refuse,
    shown,
)
from mindgpt.config.unsupported import INTERLEAVED_STAGES, is_one_device, is_one_expert

ACTIVATIONS = {
    "gelu": "gelu",  # the tanh form, as OpenAI and MindFormers mean it
    "gelu_erf": "gelu_erf",
    "fast_gelu": "fast_gelu",  # x * sigmoid(1.702 x)
    "relu": "relu",
    "silu": "silu",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "quick_gelu": "fast_gelu",
    "swish": "silu",
}
HUGGING_FACE_ACTIVATIONS = ACTIVATIONS | {"gelu": "gelu_erf", "gelu_python": "gelu_erf", "gelu_fast": "gelu"}
"""What a name means under the key `activation_function`, where plain `gelu` is the exact erf form."""

_DTYPES = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
}


def _dtype_name(value: Any) -> Any:
    """`mindspore.float16` and "mstype.float16" mean "float16"; MindFormers' users wrote all three."""
    if type(value).__module__.startswith("mindspore"):
        value = str(value).lower()
    return value.removeprefix("mstype.") if isinstance(value, str) else value


DType = Annotated[str, one_of(_DTYPES), BeforeValidator(_dtype_name)]
"""One of float32, float16, bfloat16."""

Activation = Annotated[str, one_of(ACTIVATIONS)]


class PetSection(Section):
    """`model.model_config.pet_config`: parameter-efficient tuning by LoRA (Hu et al. 2021).

    It applies to the linear layers whose full path (`backbone.blocks.0.attention.dense1`) matches the regular
    expression `target_modules`; if there is none, to those whose own name (`dense1`) begins with it, as in MindFormers.

    `bias: lora_only` also trains the biases of these layers. `adapter` is a file or folder of weights that a LoRA was
    trained to, to be put on `load_checkpoint`; settings in its metadata need not be repeated here.
    """

    pet_type: Annotated[str, one_of({"lora": "lora"})] = "lora"
    lora_rank: Count = 8
    lora_alpha: Positive = 16.0
    use_rslora: bool = False
    lora_dropout: DropoutRate = 0.0
    target_modules: str = ".*dense1.*|.*dense3.*"
    bias: Literal["none", "lora_only"] = "none"
    adapter: PathText = ""

    ignored: ClassVar = {
        "in_channels": ANY_VALUE,  # every layer knows its own
        "out_channels": ANY_VALUE,
        "param_init_type": ANY_VALUE,  # those of the model count
        "compute_dtype": ANY_VALUE,
        "lora_a_init": only("normal", reason="A begins with small random numbers"),
        "lora_b_init": only("zero", "zeros", reason="B begins with zeros, so that training begins with the base model"),
        "exclude_layers": only("", [], reason="target_modules matches a layer's full path, and can leave layers out"),
        "freeze_include": only([], reason="all weights of the base model are frozen"),
        "freeze_exclude": only([], reason="all weights of the base model are frozen"),
    }

    @property
    def scaling(self) -> float:
        """What the update B A is multiplied by: alpha / r, or with rsLoRA alpha / sqrt(r) (Kalajdzievski 2023)."""
        return self.lora_alpha / (math.sqrt(self.lora_rank) if self.use_rslora else self.lora_rank)

    @field_validator("target_modules")
    @classmethod
    def _is_a_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return value


def _offset(value: Any) -> int | list[int]:
    if isinstance(value, list) and any(isinstance(number, list) for number in value):
        raise ValueError(
            f"must be one list with a number for each pipeline stage, not {shown(value)}: {INTERLEAVED_STAGES}"
        )
    if isinstance(value, list) and value and all(type(number) is int for number in value):
        return value
    if value != 0 or isinstance(value, bool):
        raise ValueError(f"must be 0 or a list with a number for each pipeline stage, not {shown(value)}")
    return 0


Offset = Annotated[Any, BeforeValidator(_offset)]


class Variant(NamedTuple):
    """What a variant of GPT-2 changes beside the order of its block, which is `gpt2_modules.BLOCKS`'.

    Attributes:
        model: the network's name, for messages.
        embedding_norm: whether there is a layer norm after the embeddings.
        final_norm: whether there is a layer norm after the last block.
        hidden_act: the activation unless another is given.
    """

    model: str
    embedding_norm: bool
    final_norm: bool
    hidden_act: str


VARIANTS = {
    "gpt2": Variant("a GPT-2", embedding_norm=False, final_norm=True, hidden_act="gelu"),
    "gpt2_ml": Variant("a GPT2_ML", embedding_norm=True, final_norm=False, hidden_act="gelu_erf"),
}
"""The values of `variant`."""

UER_EPSILON = 1e-6
"""The eps of a layer norm in UER-py and TencentPretrain (`layers/layer_norm.py`)."""

LAYER_NORM_OF_CONVERSION = {"uer": "uer", "copy": "standard", "folded": "standard"}
"""The `layer_norm` that weights have after each `layer_norm_conversion`."""


class GPT2Section(GenerationSection):
    """`model.model_config`: everything about a GPT-2 network, under MindFormers' names or Hugging Face's.

    Each of `seq_length` and `max_position_embeddings` defaults to the other (1024 if neither is given). In a validated
    section both, `ffn_hidden_size` and `embedding_dropout_rate` have a value. `hidden_act` is stored as one of gelu
    (the tanh form), gelu_erf, fast_gelu, relu, silu. `max_new_tokens` counts new tokens and takes precedence over
    `max_decode_length`, which counts the prompt too; `GenerationSection` documents the other keys of generation. A
    token id that is None is the tokenizer's. `batch_size` is that of prediction. `label_names` are the names of a
    classifier's labels, in the order of their numbers.

    `variant` is the order of a block's parts: "gpt2", or "gpt2_ml", the network of GPT2_ML (`GPT2MLBlock`), which has a
    layer norm after the embeddings, none after the last block, and gelu_erf unless `hidden_act` is given.

    `layer_norm` is the arithmetic of all layer norms: "standard" (Ba et al. 2016), or "uer", that of UER-py and
    TencentPretrain, gamma (x - mean) / (unbiased standard deviation + eps) + beta, whose eps is 1e-6 unless it is
    given. `layer_norm_conversion` records how weights of these two were converted: "uer" keeps their arithmetic; "copy"
    has the standard one with gamma unchanged, as their own converters write it; "folded" the standard one with
    gamma * sqrt((H - 1) / H), which is nearest to it.

    `unpadded_vocab_size`: how many of the `vocab_size` rows of the token table are tokens; the others are padding, by
    which cards can share the table, and take no part in the softmax. None: all are tokens.

    `offset`: the blocks of each pipeline stage beyond num_layers // pipeline_stage, as in MindFormers, such as
    [-1, 0, 1, 2]; 0: as even as can be.

    `tie_word_embeddings`: whether the output head is the token embedding (Press & Wolf 2017) or has its own weights.

    `reset_attention_mask`, `reset_position_ids`: of a language model in training and evaluation, whether the documents
    of a packed row, each of which ends with `eos_token_id`, see only themselves, and count positions from 0.

    `prompt_special_tokens`: the special tokens around a prompt: "bos" (the first token alone), "all" (whatever the
    tokenizer puts around a text) or "none"; None: "bos" for a WordPiece tokenizer, "all" for GPT-2's. SentencePiece has
    "bos" where its files put a special token before every text, else "none".
    """

    type: Literal["GPT2Config"] = "GPT2Config"

    seq_length: CompletedCount = TO_BE_COMPLETED
    max_position_embeddings: CompletedCount = TO_BE_COMPLETED
    vocab_size: Count = 50257
    unpadded_vocab_size: Count | None = None
    hidden_size: Count = 768
    num_layers: Count = 12
    num_heads: Count = 12
    expand_ratio: Count | None = None
    ffn_hidden_size: CompletedCount = TO_BE_COMPLETED
    num_labels: Count = 2
    label_names: list[str] | None = None

    variant: Annotated[str, one_of({name: name for name in VARIANTS})] = "gpt2"
    hidden_act: Activation = "gelu"
    layer_norm: Literal["standard", "uer"] = "standard"
    layer_norm_conversion: Literal["uer", "copy", "folded"] | None = None
    layernorm_epsilon: Positive = 1e-5
    tie_word_embeddings: bool = True
    initializer_range: Positive = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    embedding_dropout_rate: DropoutRate | None = None
    hidden_dropout_rate: DropoutRate = 0.1
    attention_dropout_rate: DropoutRate = 0.1

    param_init_type: DType = "float32"
    compute_dtype: DType = "float32"
    layernorm_compute_type: DType = "float32"
    softmax_compute_type: DType = "float32"
    use_flash_attention: bool = False
    reset_attention_mask: bool = False
    reset_position_ids: bool = False

    offset: Offset = 0

    checkpoint_name_or_path: PathText = ""
    use_past: bool = True
    batch_size: Count | None = None
    bos_token_id: CountOrZero | None = None
    pad_token_id: CountOrZero | None = None
    max_decode_length: Count | None = None
    prompt_special_tokens: Literal["bos", "all", "none"] | None = None

    pet_config: PetSection | None = None

    ignored: ClassVar = {
        "use_prompt_flash_attention": only(False, reason="the key is use_flash_attention"),
        "use_incre_flash_attention": only(False, reason="the key is use_flash_attention"),
        "post_layernorm_residual": only(False, reason="a block adds its input as it was before layer normalization"),
        "unk_token_id": ANY_VALUE,  # byte-level tokens have no unknown
        "layers_per_stage": only(reason="the key is offset"),
        "pp_interleave_num": only(1, reason=INTERLEAVED_STAGES),
        "fine_grain_interleave": ANY_VALUE,  # micro_batch_interleave_num overlaps messages with computation
        "start_stage": only(0, reason="a network begins with the first pipeline stage"),
        "stage_num": only(0, reason="the key is parallel_config.pipeline_stage"),
        "is_dynamic": ANY_VALUE,  # of the key/value cache, which needs none of these three
        "block_size": ANY_VALUE,
        "num_blocks": ANY_VALUE,
        "parallel_config": only(allows=is_one_device, reason="it is a section of the YAML of its own"),
        "moe_config": only(allows=is_one_expert, reason="mindgpt has no mixture of experts"),
        "return_dict_in_generate": only(False, reason=KNOWN_ELSEWHERE["return_dict_in_generate"]),
        "output_scores": only(False, reason=KNOWN_ELSEWHERE["output_scores"]),
        "output_logits": only(False, reason=KNOWN_ELSEWHERE["output_logits"]),
        "is_encoder_decoder": only(False, reason="GPT-2 is a decoder"),
        "is_sample_acceleration": ANY_VALUE,
        "name_or_path": ANY_VALUE,
        "mindformers_version": ANY_VALUE,
        "tokenizer_class": ANY_VALUE,
        "architectures": ANY_VALUE,
        "rl_config": only(reason="mindgpt has no reinforcement learning"),
    }
    no_effect: ClassVar = (
        NoEffect(
            "use_past",
            when(lambda run: run.config.run_mode == "predict", "text is always generated with a key/value cache"),
        ),
    )
    other_names: ClassVar = {
        "embedding_dropout_prob": "embedding_dropout_rate",
        "max_length": "max_decode_length",
        "embedding_size": "hidden_size",  # from here on, of MindFormers 0.3
        "dropout_prob": "embedding_dropout_rate",
        "hidden_dropout_prob": "hidden_dropout_rate",
        "attention_probs_dropout_prob": "attention_dropout_rate",
        "layernorm_dtype": "layernorm_compute_type",
        "softmax_dtype": "softmax_compute_type",
        "eos_token": "eos_token_id",
        "n_embd": "hidden_size",  # from here on, of Hugging Face
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "n_positions": "max_position_embeddings",
        "n_ctx": "seq_length",
        "n_inner": "ffn_hidden_size",
        "activation_function": "hidden_act",
        "resid_pdrop": "hidden_dropout_rate",
        "embd_pdrop": "embedding_dropout_rate",
        "attn_pdrop": "attention_dropout_rate",
        "layer_norm_epsilon": "layernorm_epsilon",
    }

    @classmethod
    def translated(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Hugging Face calls the exact form `gelu`; bring its words to ours before the two keys are compared."""
        data = dict(data)
        for key, names in (("activation_function", HUGGING_FACE_ACTIVATIONS), ("hidden_act", ACTIVATIONS)):
            if isinstance(data.get(key), str):
                data[key] = names.get(data[key].lower(), data[key])
        return data

    def complete(self) -> None:
        length = self.seq_length or self.max_position_embeddings or 1024
        self.fill(seq_length=length, max_position_embeddings=self.max_position_embeddings or length)
        if self.embedding_dropout_rate is None:
            self.fill(embedding_dropout_rate=self.hidden_dropout_rate)
        refuse(self._problems())
        if self.ffn_hidden_size is None:
            ratio = self.expand_ratio or 4
            self.fill(expand_ratio=ratio, ffn_hidden_size=ratio * self.hidden_size)
        elif self.ffn_hidden_size % self.hidden_size == 0:
            self.fill(expand_ratio=self.ffn_hidden_size // self.hidden_size)
        if "hidden_act" not in self.model_fields_set:
            self.fill(hidden_act=VARIANTS[self.variant].hidden_act)
        if self.layer_norm == "uer" and "layernorm_epsilon" not in self.model_fields_set:
            self.fill(layernorm_epsilon=UER_EPSILON)

    @property
    def token_count(self) -> int:
        """The number of tokens: `vocab_size` without padding."""
        return self.vocab_size if self.unpadded_vocab_size is None else self.unpadded_vocab_size

    @property
    def embedding_norm(self) -> bool:
        """Whether the network has a layer norm after the embeddings."""
        return VARIANTS[self.variant].embedding_norm

    @property
    def final_norm(self) -> bool:
        """Whether the network has a layer norm after the last block."""
        return VARIANTS[self.variant].final_norm

    def unused_keys(self, run: Run) -> dict[str, list[str]]:
        predicts_text = run.config.run_mode == "predict" and run.config.trainer.type == "CausalLanguageModelingTrainer"
        return super().unused_keys(run) | (self.unused_sampling_settings() if predicts_text else {})

    def _problems(self) -> Iterator[tuple[str, str]]:
        if self.seq_length > self.max_position_embeddings:
            yield (
                "seq_length",
                f"{self.seq_length} is longer than max_position_embeddings {self.max_position_embeddings}: "
                "there would be no position embedding for the tokens beyond",
            )
        if self.hidden_size % self.num_heads != 0:
            yield "hidden_size", f"{self.hidden_size} must be divisible by num_heads, which is {self.num_heads}"
        if self.expand_ratio is not None and self.ffn_hidden_size is not None:
            width = self.expand_ratio * self.hidden_size
            if width != self.ffn_hidden_size:
                yield "ffn_hidden_size", f"{self.ffn_hidden_size} is not expand_ratio x hidden_size = {width}; give one"
        yield from self._problems_of_layer_norm()
        names = self.label_names
        if names is not None and (len(names) != self.num_labels or len(set(names)) != len(names)):
            yield "label_names", f"must be {self.num_labels} different names, as many as num_labels; not {names}"
        for name in ("reset_attention_mask", "reset_position_ids"):
            if getattr(self, name) and len(self.eos_token_ids) != 1:
                yield name, "needs eos_token_id, the one token with which each document of a packed row ends"
        yield from self.contradictions(self.max_decode_length)
        tokens = self.token_count
        if tokens > self.vocab_size:
            yield (
                "unpadded_vocab_size",
                f"{tokens} tokens need as many rows, and vocab_size, which counts the rows with padding, is "
                f"{self.vocab_size}",
            )
        size = "vocab_size" if self.unpadded_vocab_size is None else "unpadded_vocab_size"
        yield from self.ids_outside(tokens, size)
        for name in ("bos_token_id", "pad_token_id"):
            token = getattr(self, name)
            if token is not None and token >= tokens:
                yield name, f"{token} is outside the vocabulary, whose size ({size}) is {tokens}"

    def _problems_of_layer_norm(self) -> Iterator[tuple[str, str]]:
        conversion = self.layer_norm_conversion
        needed = self.layer_norm if conversion is None else LAYER_NORM_OF_CONVERSION[conversion]
        if needed != self.layer_norm:
            yield "layer_norm_conversion", f"'{conversion}' makes layer_norm '{needed}', which is '{self.layer_norm}'"
        if self.layer_norm == "uer" and self.hidden_size == 1:
            yield "hidden_size", "must be at least 2: one value has no unbiased standard deviation (layer_norm 'uer')"


class ArchSection(Section):
    """`model.arch`: the head on top of the network."""

    type: Literal["GPT2LMHeadModel", "GPT2ForSequenceClassification"] = "GPT2LMHeadModel"


class ModelSection(Section):
    """`model`. The YAML key `model_config` is the attribute `config`: pydantic keeps the other name for itself."""

    arch: ArchSection = Field(default_factory=ArchSection)
    config: GPT2Section = Field(default_factory=GPT2Section, alias="model_config")

    @classmethod
    def translated(cls, data: dict[str, Any]) -> dict[str, Any]:
        """`GPT2WithLora` is what early releases of MindFormers called a `GPT2LMHeadModel` that has a `pet_config`."""
        arch, config = data.get("arch"), data.get("model_config")
        if not isinstance(arch, Mapping) or arch.get("type") != "GPT2WithLora":
            return data
        if not isinstance(config, Mapping) or config.get("pet_config") is None:
            refuse(
                [("arch.type", "'GPT2WithLora' needs model_config.pet_config; without LoRA it is 'GPT2LMHeadModel'")]
            )
        return {**data, "arch": {**arch, "type": "GPT2LMHeadModel"}}
