"""The sections of data: datasets, tokenizer, processor."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from mindgpt.config.no_effect import NoEffect, Run, if_sharded, in_training, when
from mindgpt.config.section import ANY_VALUE, Count, PathText, Section, any_value, one_of, only, refuse, shown
from mindgpt.config.strategy import Strategy

Column = Annotated[str, BeforeValidator(lambda name: "attention_mask" if name == "input_mask" else name)]
"""A column's name; early releases of MindFormers called the mask `input_mask`."""


_PREPARED = "the data sets are MindRecord files: tools/dataset_preprocess makes them of texts, tables and JSON"


def _mind_record(value: Any) -> Any:
    if value != "MindDataset":
        raise ValueError(f"must be 'MindDataset', not {shown(value)}: {_PREPARED}")
    return value


def _reads_in_order(run: Run) -> bool:
    """Whether an evaluation's rows are divided among processes."""
    evaluates = run.config.run_mode == "eval" or (run.config.trains and run.config.do_eval)
    texts = run.config.trainer.type == "CausalLanguageModelingTrainer"
    return bool(evaluates) and texts and run.strategy is Strategy.DATA_PARALLEL


class DataLoaderSection(Section):
    """`*_dataset.data_loader`. `dataset_dir` is a MindRecord file or a folder of which every `*mindrecord` is read."""

    type: Annotated[Literal["MindDataset"], BeforeValidator(_mind_record)] = "MindDataset"
    dataset_dir: PathText = ""
    shuffle: bool | None = None

    ignored: ClassVar = {
        "dataset_files": only("", [], reason="the key is dataset_dir, a file or a folder"),
        "columns_list": only([], reason="the key is input_columns, of the section above"),
        "num_samples": only(reason="the key is num_samples, of the section above"),
        "num_parallel_workers": ANY_VALUE,
        "num_shards": ANY_VALUE,  # the processes of a run share out the rows
        "shard_id": ANY_VALUE,
        "sampler": only(reason="rows are read in order or shuffled; see shuffle"),
        "padded_sample": only(reason="rows are padded as they are read"),
        "num_padded": only(0, reason="rows are padded as they are read"),
        "cache": only(reason="rows are not cached"),
    }


_COLUMNS = "columns keep their names, which are among input_ids, attention_mask and labels"


def _are_columns(value: Any) -> bool:
    return isinstance(value, list) and set(map(str, value)) <= {"input_ids", "attention_mask", "input_mask", "labels"}


class DatasetSection(Section):
    """`train_dataset` or `eval_dataset`. After validation `data_loader.shuffle` and `drop_remainder` have a value.

    The batch size that counts is `runner_config.batch_size`; the one here is used only where that one is absent.
    `num_buckets`, for classification only, is how many lengths rows are padded to at most; None: 4.
    `input_columns` None: `input_ids`, `attention_mask`, and `labels` where the data set has them.
    """

    data_loader: DataLoaderSection = Field(default_factory=DataLoaderSection)
    input_columns: Annotated[list[Column], Field(min_length=1)] | None = None
    num_parallel_workers: Count = 8
    python_multiprocessing: bool = False
    drop_remainder: bool | None = None
    batch_size: Count | None = None
    repeat: Count = 1
    prefetch_size: Count = 1
    num_samples: Count | None = None
    num_buckets: Count | None = None

    ignored: ClassVar = any_value(
        "numa_enable tokenizer auto_tune filepath_prefix autotune_per_step profile ignore_pad_token_for_loss"
    ) | {
        "seed": ANY_VALUE,  # the run's seed shuffles
        "output_columns": only(allows=lambda value: _are_columns(value), reason=_COLUMNS),
        "column_order": only(allows=lambda value: _are_columns(value), reason=_COLUMNS),
        "transforms": only([], reason="rows are used as the data set has them"),
        "dynamic_batch": only(False, reason="rows of one length make a batch; classification has num_buckets"),
        "eod_reset": only(False, reason="positions and attention go on across the end of a text"),
        "eod_token_id": ANY_VALUE,
        "token_monitor": only(False, reason="tokens are not counted while they are read"),
        "token_monitor_config": ANY_VALUE,
        "mask_policy": only(reason="mindgpt reads text only"),
        "mixup_op": only(reason="mindgpt reads text only"),
        "text_transforms": only(reason="rows are used as the data set has them"),
    }
    for_training: ClassVar = False

    def complete(self) -> None:
        """By default training shuffles and drops the last, smaller batch; evaluation does neither."""
        if self.data_loader.shuffle is None:
            self.fill(data_loader=self.data_loader.replaced({"shuffle": self.for_training}))
        if self.drop_remainder is None:
            self.fill(drop_remainder=self.for_training)


def _why_drop_remainder(run: Run) -> str | None:
    left_out = "the last rows of an epoch are left out"
    if run.strategy is Strategy.SEMI_AUTO:
        return f"a model that is sharded over cards is compiled for one number of rows; {left_out}"
    if run.config.trains and run.config.runner_config.gradient_accumulation_steps > 1:
        return f"a step of several micro-batches needs all its rows; {left_out}"
    return None


class TrainDatasetSection(DatasetSection):
    """`train_dataset`."""

    for_training: ClassVar = True
    no_effect: ClassVar = (
        NoEffect("python_multiprocessing", in_training("rows are read by MindSpore's own threads")),
        NoEffect("drop_remainder", _why_drop_remainder, value=False),
        NoEffect("num_buckets", if_sharded("a model that is sharded over cards is compiled for seq_length only")),
    )


class EvalDatasetSection(DatasetSection):
    """`eval_dataset`."""

    no_effect: ClassVar = (
        NoEffect("data_loader.shuffle", when(_reads_in_order, "several processes read rows in order"), value=True),
    )


class DatasetTaskSection(Section):
    """`train_dataset_task` or `eval_dataset_task`: what the rows of the data set are for.

    `type` follows from `trainer.type` where it is absent.
    """

    type: Literal["CausalLanguageModelDataset", "TextClassificationDataset"] | None = None


_TOKENIZERS = {
    "GPT2Tokenizer": "GPT2Tokenizer",
    "GPT2TokenizerFast": "GPT2Tokenizer",
    "WordPieceTokenizer": "WordPieceTokenizer",
    "BertTokenizer": "WordPieceTokenizer",
    "BertTokenizerFast": "WordPieceTokenizer",
    "SentencePieceTokenizer": "SentencePieceTokenizer",
    "LlamaTokenizer": "SentencePieceTokenizer",
    "LlamaTokenizerFast": "SentencePieceTokenizer",
    "T5Tokenizer": "SentencePieceTokenizer",
    "T5TokenizerFast": "SentencePieceTokenizer",
    "JiebaTokenizer": "JiebaTokenizer",
    "JiebaBPETokenizer": "JiebaTokenizer",
}


class TokenizerSection(Section):
    """`processor.tokenizer`. `path` is a tokenizer folder; instead, its files may be named.

    These are either `vocab_file` and `merges_file` together, or `tokenizer_file` alone, or for WordPiece the
    `vocab_file` vocab.txt alone, for SentencePiece the `vocab_file` tokenizer.model. The files of a folder say what
    kind it is; `type` does not need to, unless a `tokenizer_file` for jieba's words is named by itself.
    `GPT2Tokenizer`, which every old YAML names, stands for any kind.

    Attributes:
        rules, do_lower_case: of WordPiece; see `WordPieceTokenizer`. None: as the files say. rules "uer": the ids of
            UER-py's tokenizer.
        split_at: of Jieba; see `JiebaTokenizer`. None: as the files say.
    """

    type: Annotated[str, one_of(_TOKENIZERS)] = "GPT2Tokenizer"
    path: PathText = ""
    vocab_file: PathText = ""
    merges_file: PathText = ""
    tokenizer_file: PathText = ""
    rules: Literal["transformers", "uer", "bert4keras", "gpt2_ml"] | None = None
    do_lower_case: bool | None = None
    split_at: list[str] | None = None
    unk_token: str = "<|endoftext|>"
    bos_token: str = "<|endoftext|>"
    eos_token: str = "<|endoftext|>"
    pad_token: str = "<|endoftext|>"

    ignored: ClassVar = {
        "max_length": ANY_VALUE,  # model.model_config.seq_length counts
        "model_max_length": ANY_VALUE,
        "padding_side": ANY_VALUE,  # of no effect on what is computed
        "truncation_side": ANY_VALUE,
        "clean_up_tokenization_spaces": only(False, reason="texts are what their tokens say"),
        "add_special_tokens": ANY_VALUE,
        "add_prefix_space": only(False, reason="begin the prompt with a space instead"),
        "add_bos_token": only(False, reason="begin the prompt with the token's text instead"),
        "add_eos_token": only(False, reason="a prompt that is at its end is not continued"),
        "additional_special_tokens": only([], reason="special tokens are those of the tokenizer's files"),
        "chat_template": only("", reason="write the prompt out as the model has learnt it"),
        "errors": only("replace", reason="bytes that are no UTF-8 become U+FFFD"),
    }

    def complete(self) -> None:
        one_file = self.type != "GPT2Tokenizer"
        if one_file and self.merges_file:
            refuse([("merges_file", f"is of GPT2Tokenizer; {self.type} has a vocab_file alone")])
        if self.merges_file:
            refuse(
                (key, f"is of {kind}, which has no merges_file; remove one")
                for kind, settings in self.settings_of_kinds.items()
                for key in settings
            )
        whole = one_file or self.vocab_file.endswith((".txt", ".model"))  # a byte-level vocabulary is JSON
        if bool(self.vocab_file) != bool(self.merges_file) and not (self.vocab_file and whole):
            given, wanted = ("vocab_file", "merges_file") if self.vocab_file else ("merges_file", "vocab_file")
            refuse([(given, f"needs {wanted} beside it")])
        sources = [key for key in ("path", "vocab_file", "tokenizer_file") if getattr(self, key)]
        refuse((key, f"and {sources[0]} both name a tokenizer; keep one of the two") for key in sources[1:])

    @property
    def one_file(self) -> str:
        """The file that is a whole tokenizer, or ""."""
        return self.tokenizer_file or (self.vocab_file if not self.merges_file else "")

    @property
    def settings_of_kinds(self) -> dict[str, dict[str, Any]]:
        """The arguments that are given of tokenizers of one kind only, by the kind's name."""
        given: dict[str, dict[str, Any]] = {
            "WordPiece": {"rules": self.rules, "do_lower_case": self.do_lower_case},
            "Jieba": {"split_at": self.split_at},
        }
        return {
            kind: {name: value for name, value in settings.items() if value is not None}
            for kind, settings in given.items()
        }


class ProcessorSection(Section):
    """`processor`: turns prompts into token ids and back."""

    type: Literal["GPT2Processor"] = "GPT2Processor"
    return_tensors: Literal["ms"] = "ms"

    ignored: ClassVar = {
        "max_length": ANY_VALUE,  # model.model_config.seq_length counts
        "padding": ANY_VALUE,
        "add_special_tokens": ANY_VALUE,
        "image_processor": only(reason="mindgpt reads text only"),
        "audio_processor": only(reason="mindgpt reads text only"),
    }
    tokenizer: TokenizerSection = Field(default_factory=TokenizerSection)
