"""`mindgpt.pipeline`: a model and its tokenizer as one function from text to text, or from text to labels.

What goes in and comes out is as in the pipelines of Hugging Face transformers.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any

from mindgpt.checkpoints.locations import config_beside, find_weights
from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError
from mindgpt.config.paths import expanded_path
from mindgpt.config.section import nearest, shown
from mindgpt.generation.engine import generator_of
from mindgpt.generation.labels import encode_texts, label_probabilities
from mindgpt.generation.prompt_ids import checked_prompt_special_tokens
from mindgpt.generation.settings import GenerationSettings, warn_without_effect, way_out
from mindgpt.generation.task_settings import settings_of_task
from mindgpt.generation.text_generation import (
    check_batch_size,
    check_tokenizer_fits,
    encode_prompts,
    generate_text,
    stream_text,
)
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.models.gpt2.gpt2_classifier import GPT2ForSequenceClassification
from mindgpt.runtime.ranks import say
from mindgpt.tokenizers.loading import holds_tokenizer, load_tokenizer, named_files
from mindgpt.tokenizers.tokenizer import BaseTokenizer

BATCH_SIZE = 8
_SCORE = "score.weight"


class TextGenerationPipeline:
    """Continues texts; see `pipeline`. `settings` and `prompt_special_tokens` are those of every call that does not say
    otherwise."""

    def __init__(
        self,
        model: GPT2LMHeadModel,
        tokenizer: BaseTokenizer,
        batch_size: int = BATCH_SIZE,
        return_full_text: bool = True,
        prompt_special_tokens: str | None = None,
        **settings: Any,
    ):
        check_batch_size(batch_size)
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.return_full_text = _true_or_false("return_full_text", return_full_text)
        self.prompt_special_tokens = checked_prompt_special_tokens(prompt_special_tokens)
        self.settings = GenerationSettings.from_config(model.config, **settings)
        self.generator = generator_of(model)

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        batch_size: int | None = None,
        return_full_text: bool | None = None,
        prompt_special_tokens: str | None = None,
        **settings: Any,
    ) -> list[dict[str, str]] | list[list[dict[str, str]]]:
        """Continue a text, or each text of a list.

        Args:
            batch_size: texts to run at once at most; it changes no text.
            return_full_text: the prompt with what follows; False: what follows alone.
            prompt_special_tokens: the special tokens around each prompt: "bos" (the first of them, in front), "all"
                (whatever the tokenizer puts around a text) or "none"; None: as the model's config says, else as is
                usual for the tokenizer's kind (`GPT2Section`). They are no part of the text.
            settings: of this call.

        Returns:
            `[{"generated_text": ...}]`, with `num_return_sequences` n of them; for a list of texts a list of such.

        Raises:
            UserError: a value that is not allowed, or a prompt that cannot be continued.
        """
        asked = self.settings.changed(**settings)
        size = self.batch_size if batch_size is None else batch_size
        full = self.return_full_text
        if return_full_text is not None:
            full = _true_or_false("return_full_text", return_full_text)
        warn_without_effect(asked, depth=2)
        around = checked_prompt_special_tokens(prompt_special_tokens) or self.prompt_special_tokens
        done = generate_text(self.generator, self.tokenizer, _texts(texts), asked, size, prompt_special_tokens=around)
        results = [{"generated_text": (one.prompt if full else "") + one.text} for one in done]
        copies = asked.num_return_sequences
        grouped = [results[start : start + copies] for start in range(0, len(results), copies)]
        return grouped[0] if isinstance(texts, str) else grouped

    def stream(self, text: str, *, prompt_special_tokens: str | None = None, **settings: Any) -> Iterator[str]:
        """What follows a text, piece by piece as it is generated; see `mindgpt.generation.stream_text`.

        Raises:
            UserError: a value that is not allowed, or a text that cannot be continued or streamed; at once, not when
                the first piece is asked for.
        """
        asked = self.settings.changed(**settings)
        if not isinstance(text, str):
            raise UserError(f"stream: takes one text, not {shown(text)}")
        if asked.num_return_sequences > 1:
            raise UserError("num_return_sequences: several texts cannot be read as one stream; ask for 1")
        if asked.num_beams > 1:
            raise UserError("num_beams: a beam search goes back on what it said, so it cannot be streamed; ask for 1")
        config = self.model.config
        around = checked_prompt_special_tokens(prompt_special_tokens) or self.prompt_special_tokens
        around = around or config.prompt_special_tokens
        sizes = config.vocab_size, config.max_position_embeddings
        encode_prompts(self.tokenizer, [text], asked, *sizes, prompt_special_tokens=around)
        warn_without_effect(asked, depth=2)
        return stream_text(self.generator, self.tokenizer, text, asked, around)


class TextClassificationPipeline:
    """Labels texts; see `pipeline`. `top_k` and the like are those of every call that does not say otherwise."""

    def __init__(
        self,
        model: GPT2ForSequenceClassification,
        tokenizer: BaseTokenizer,
        batch_size: int = BATCH_SIZE,
        truncation: bool = False,
        top_k: int | None | EllipsisType = ...,
        **unknown: Any,
    ):
        _refuse_unknown(unknown)
        check_batch_size(batch_size)
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.truncation = _true_or_false("truncation", truncation)
        self.top_k = _checked_top_k(top_k)

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        batch_size: int | None = None,
        truncation: bool | None = None,
        top_k: int | None | EllipsisType = ...,
        **unknown: Any,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """The most likely label of a text, or of each text of a list.

        Args:
            batch_size: texts to run at once at most; it does not change what a text gets.
            truncation: drop the end of a text that is too long for the model, which otherwise is an error.
            top_k: so many labels for each text, the most likely first; None: all.

        Returns:
            `[{"label": ..., "score": its probability}]`, one for each text. With `top_k` a list of them for each text;
            where it is an argument of this call, a single text gets its list itself, as in transformers.

        Raises:
            UserError: a value that is not allowed, a text that is empty or too long.
        """
        _refuse_unknown(unknown)
        if truncation is None:
            truncation = self.truncation
        many = self.top_k if top_k is ... else _checked_top_k(top_k)
        longest = self.model.config.max_position_embeddings
        rows, too_long = encode_texts(self.tokenizer, _texts(texts), longest, self.model.config.vocab_size)
        if too_long and not _true_or_false("truncation", truncation):
            raise UserError(
                f"Text {too_long[0]} has more tokens than the {longest} that the model reads; truncation=True drops "
                "its end."
            )
        probabilities = label_probabilities(self.model, rows, self.batch_size if batch_size is None else batch_size)
        names = self.model.config.names_of_labels()
        ranked = [
            [{"label": names[label], "score": float(row[label])} for label in (-row).argsort(kind="stable")]
            for row in probabilities
        ]
        if many is ...:
            return [labels[0] for labels in ranked]
        ranked = [labels[:many] for labels in ranked]
        return ranked[0] if isinstance(texts, str) and top_k is not ... else ranked


_TASKS = {
    "text-generation": (TextGenerationPipeline, GPT2LMHeadModel),
    "text-classification": (TextClassificationPipeline, GPT2ForSequenceClassification),
}


def pipeline(
    task: str,
    model: str | Path | GPT2LMHeadModel | GPT2ForSequenceClassification | None = None,
    tokenizer: str | Path | BaseTokenizer | None = None,
    **options: Any,
) -> TextGenerationPipeline | TextClassificationPipeline:
    """A function from text to text ("text-generation"), or from text to labels ("text-classification").

    Args:
        task: one of the two.
        model: what `from_pretrained` takes: a folder, a `.ckpt` beside its config.json, or the name of a model that
            MindFormers downloaded; or a model.
        tokenizer: its folder, or the tokenizer; None: the one beside the weights.
        options: what every call is to have that does not say otherwise, such as `batch_size`, or for text-generation
            `prompt_special_tokens`, `max_new_tokens`, `do_sample` and all other `GenerationSettings`. Below them are
            those that a Hugging Face config.json names under `task_specific_params`.

    Raises:
        UserError: an unknown task or option; no model or tokenizer there; or task, model and tokenizer do not fit.
    """
    if task not in _TASKS:
        raise UserError(f"pipeline: there is no task {shown(task)}; {nearest(str(task), _TASKS)}")
    made, wanted = _TASKS[task]
    model = expanded_path(model) if isinstance(model, (str, Path)) else model
    if model is None:
        raise UserError("pipeline: model=... is missing: a folder or a .ckpt. Nothing is downloaded by name.")
    if tokenizer is None:
        tokenizer = _tokenizer_beside(model)
    elif isinstance(tokenizer, (str, Path)):
        tokenizer = load_tokenizer(tokenizer)
    if not isinstance(tokenizer, BaseTokenizer):
        raise UserError(f"pipeline: tokenizer: must be a folder or a tokenizer of mindgpt's, not {shown(tokenizer)}")
    if isinstance(model, (str, Path)):
        file = _checked_weights(Path(model), task)
        if task == "text-generation":
            options = _with_settings_of_task(file, task, options)
        model = wanted.from_pretrained(model)
    if not isinstance(model, wanted):
        other = next((name for name, (_, kind) in _TASKS.items() if isinstance(model, kind)), None)
        hint = f': pipeline("{other}", ...) is for it' if other else ""
        raise UserError(f"pipeline: {task} needs a {wanted.__name__}, and this is a {type(model).__name__}{hint}")
    check_tokenizer_fits(tokenizer, model.config.vocab_size)
    return made(model, tokenizer, **options)


def _tokenizer_beside(model: Any) -> BaseTokenizer:
    if not isinstance(model, (str, Path)):
        raise UserError("pipeline: tokenizer=... is missing: a model that is no folder has none beside it")
    path = _located(model)
    folder = path if path.is_dir() else path.parent
    if not holds_tokenizer(folder):
        raise UserError(f"pipeline: {folder} holds no tokenizer ({named_files()}): name the folder with tokenizer=DIR")
    return load_tokenizer(folder)


def _located(model: str | Path) -> Path:
    try:
        return find_weights(model)
    except UserError as error:
        raise UserError(f"pipeline: model: {error}") from None


def _checked_weights(path: Path, task: str) -> Path:
    """The file or folder of the weights. Raises `UserError` if they are those of the other task's model."""
    source = open_weights(_located(path)).source
    classifies = _SCORE in source.entries
    if task == "text-generation" and classifies:
        raise UserError(f'{path}: these are weights of a classifier: pipeline("text-classification", ...) is for them')
    if task == "text-classification" and not classifies:
        raise UserError(
            f"{path}: these are weights of a language model, which knows no labels. Fine-tune it to be a classifier "
            'first, or generate text: pipeline("text-generation", ...)'
        )
    return source.path


def _with_settings_of_task(weights: Path, task: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options, and before them what the config.json beside the weights sets for this task."""
    options = GenerationSettings.in_own_names(options)
    file = config_beside(weights)
    settings, notes = settings_of_task(file, task) if file else ({}, [])
    for note in notes:
        say(f"note: {note}")
    if options.get("max_new_tokens") is not None:  # it counts other tokens, and takes precedence
        settings.pop("max_length", None)
    return settings | options


def _texts(texts: str | Sequence[str]) -> list[str]:
    """The texts one by one. What a generator yields is taken, too."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, Iterable) and not isinstance(texts, (bytes, bytearray, Mapping)):
        listed = list(texts)
        if all(isinstance(text, str) for text in listed):
            return listed
    raise UserError(f"pipeline: takes a text or a list of texts, not {shown(texts)}")


def _true_or_false(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{name}: must be True or False, not {shown(value)}")
    return value


def _refuse_unknown(options: dict[str, Any]) -> None:
    """Of a classifier's pipeline, which takes few."""
    for name in options:
        known = ("batch_size", "truncation", "top_k")
        raise UserError(f"text-classification: {name}: there is no such argument; {way_out(name, known)}")


def _checked_top_k(top_k: int | None | EllipsisType) -> int | None | EllipsisType:
    if top_k not in (None, ...) and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise UserError(f"top_k: must be a number of labels, 1 or more, or None for all, not {shown(top_k)}")
    return top_k
