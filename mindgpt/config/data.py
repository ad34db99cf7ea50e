"""The sections about data: datasets, tokenizer, processor."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from mindgpt.config.section import ANY_VALUE, Count, PathText, Section, refuse

Column = Annotated[str, BeforeValidator(lambda name: "attention_mask" if name == "input_mask" else name)]
"""A column's name; early releases of MindFormers called the mask `input_mask`."""


class DataLoaderSection(Section):
    """`*_dataset.data_loader`. `dataset_dir` is a MindRecord file or a folder of which every `*mindrecord` is read."""

    type: Literal["MindDataset"] = "MindDataset"
    dataset_dir: PathText = ""
    shuffle: bool | None = None


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

    ignored: ClassVar = {"numa_enable": ANY_VALUE, "tokenizer": ANY_VALUE}
    for_training: ClassVar = False

    def complete(self) -> None:
        """Training shuffles and drops the last, smaller batch unless told otherwise; evaluation does neither."""
        if self.data_loader.shuffle is None:
            self.data_loader.shuffle = self.for_training
        if self.drop_remainder is None:
            self.drop_remainder = self.for_training


class TrainDatasetSection(DatasetSection):
    """`train_dataset`."""

    for_training: ClassVar = True


class EvalDatasetSection(DatasetSection):
    """`eval_dataset`."""


class DatasetTaskSection(Section):
    """`train_dataset_task` or `eval_dataset_task`: what the rows of the data set are for.

    `type` follows from `trainer.type` where it is absent.
    """

    type: Literal["CausalLanguageModelDataset", "TextClassificationDataset"] | None = None


class TokenizerSection(Section):
    """`processor.tokenizer`. `path` is a tokenizer folder; instead, its files may be named.

    These are either `vocab_file` and `merges_file` together, or `tokenizer_file` alone.
    """

    type: Literal["GPT2Tokenizer"] = "GPT2Tokenizer"
    path: PathText = ""
    vocab_file: PathText = ""
    merges_file: PathText = ""
    tokenizer_file: PathText = ""
    unk_token: str = "<|endoftext|>"
    bos_token: str = "<|endoftext|>"
    eos_token: str = "<|endoftext|>"
    pad_token: str = "<|endoftext|>"

    def complete(self) -> None:
        if bool(self.vocab_file) != bool(self.merges_file):
            given, wanted = ("vocab_file", "merges_file") if self.vocab_file else ("merges_file", "vocab_file")
            refuse([(given, f"needs {wanted} beside it")])
        sources = [key for key in ("path", "vocab_file", "tokenizer_file") if getattr(self, key)]
        refuse((key, f"and {sources[0]} both name a tokenizer; keep one of the two") for key in sources[1:])


class ProcessorSection(Section):
    """`processor`: turns prompts into token ids and back."""

    type: Literal["GPT2Processor"] = "GPT2Processor"
    return_tensors: Literal["ms"] = "ms"
    tokenizer: TokenizerSection = Field(default_factory=TokenizerSection)
