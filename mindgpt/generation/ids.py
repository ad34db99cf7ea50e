"""Token ids in, token ids out: what `GPT2LMHeadModel.generate` does, in the forms that users of transformers know."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mindspore import Tensor

from mindgpt.config.errors import UserError
from mindgpt.config.section import shown
from mindgpt.generation.ends import with_ends
from mindgpt.generation.engine import generate
from mindgpt.generation.requests import checked_prompts, length_limits
from mindgpt.generation.settings import GenerationSettings, warn_without_effect, way_out
from mindgpt.generation.streaming import StopStrings, TextStreamer
from mindgpt.generation.text_generation import stop_check
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.tokenizers.loading import load_tokenizer
from mindgpt.tokenizers.tokenizer import BaseTokenizer

BESIDE_SETTINGS = ("input_ids", "attention_mask", "streamer", "tokenizer", "pad_token_id")


class Streamer(Protocol):
    """What gets each token as it comes: ours (`streaming.TextStreamer`) or one of transformers."""

    def put(self, value: np.ndarray) -> None:
        """First the prompt, (1, T); then each new token, (1,)."""

    def end(self) -> None:
        """The text is at its end."""


def generate_ids(
    model: GPT2LMHeadModel,
    input_ids: Tensor | np.ndarray | Sequence | None = None,
    attention_mask: Tensor | np.ndarray | Sequence | None = None,
    streamer: Streamer | None = None,
    tokenizer: BaseTokenizer | str | Path | None = None,
    pad_token_id: int | None = None,
    /,
    **settings: Any,
) -> Tensor | list[list[int]]:
    """See `GPT2LMHeadModel.generate`."""
    input_ids = _one_input(input_ids, settings)
    settings = _settings(model, settings)
    pad = _pad_token_id(model, settings, pad_token_id)
    if isinstance(settings.end_token, str):
        settings = with_ends(settings, _tokenizer_for("end_token", "it is a text", tokenizer))
    as_tensor = isinstance(input_ids, (Tensor, np.ndarray))
    rows, dtype = _rows(input_ids)
    spans = _spans(rows, attention_mask)
    prompts = [row[span].tolist() for row, span in zip(rows, spans, strict=True)]
    stop = None
    if settings.stop_strings:
        copies = settings.num_return_sequences if settings.num_beams == 1 else 1
        last = [prompt[-1] for prompt in prompts if prompt for _ in range(copies)]
        tokenizer = _tokenizer_for("stop_strings", "they are texts", tokenizer)
        stop = stop_check(StopStrings(settings.stop_strings), tokenizer, last)
    warn_without_effect(settings, depth=3)
    if streamer is None:
        new = generate(model, prompts, settings, stop=stop)
    else:
        new = _streamed(model, prompts, settings, streamer, stop)
    copies = settings.num_return_sequences
    # What pads a prompt on the left stays where it is, as in transformers; what pads it on the right makes room.
    whole = [rows[n // copies][: spans[n // copies].stop].tolist() + ids for n, ids in enumerate(new)]
    return Tensor(_padded(whole, pad).astype(dtype)) if as_tensor else whole


def _one_input(input_ids: Any, settings: dict[str, Any]) -> Any:
    """The prompts, which transformers also takes as `inputs`."""
    inputs = settings.pop("inputs", None)
    if input_ids is not None and inputs is not None:
        raise UserError("generate: inputs and input_ids are two names of one argument; give one of them")
    if input_ids is None and inputs is None:
        raise UserError("generate: input_ids is missing: the token ids to continue, such as tokenizer.encode(text)")
    return inputs if input_ids is None else input_ids


def _streamed(
    model: GPT2LMHeadModel,
    prompts: list[list[int]],
    settings: GenerationSettings,
    streamer: Streamer,
    stop: Callable[[int, Sequence[int]], bool] | None,
) -> list[list[int]]:
    """`generate`, with a streamer that gets nothing before the prompt is found right, and the end always."""
    if not all(callable(getattr(streamer, method, None)) for method in ("put", "end")):
        raise UserError(
            f"streamer: must have the methods put and end, as generation.TextStreamer has, not {shown(streamer)}"
        )
    if len(prompts) * settings.num_return_sequences > 1 or settings.num_beams > 1:
        raise UserError("streamer: follows one text; give one prompt, num_return_sequences 1 and num_beams 1")
    settings.check_vocabulary(model.config.vocab_size)
    length_limits(checked_prompts(prompts, model.config.vocab_size), settings, model.config.max_position_embeddings)
    if isinstance(streamer, TextStreamer):
        if settings.end_token is None:
            streamer.leave_out(settings.eos_token_ids)
        else:
            streamer.keep_ends()
    streamer.put(np.asarray([prompts[0]], np.int64))
    try:
        return generate(
            model, prompts, settings, lambda _, token: streamer.put(np.asarray([token], np.int64)), stop=stop
        )
    finally:
        streamer.end()


def _tokenizer_for(setting: str, what: str, tokenizer: Any) -> BaseTokenizer:
    """The tokenizer that a setting needs: the given one, or that of the given folder."""
    if tokenizer is None:
        raise UserError(f"generation: {setting}: give the tokenizer=, too: {what}, and these are ids")
    if isinstance(tokenizer, (str, Path)):
        return load_tokenizer(tokenizer)
    if not isinstance(tokenizer, BaseTokenizer):
        raise UserError(
            f"tokenizer: must be a tokenizer of mindgpt's or its folder, not a {type(tokenizer).__name__}; "
            "mindgpt.load_tokenizer opens what others have saved"
        )
    return tokenizer


def _settings(model: GPT2LMHeadModel, given: dict[str, Any]) -> GenerationSettings:
    known = [*GenerationSettings.model_fields, *BESIDE_SETTINGS]
    for name in given:
        if name not in known and name not in GenerationSettings.other_names:
            raise UserError(f"generate: {name}: there is no such argument; {way_out(name, known)}")
    return GenerationSettings.from_config(model.config, **given)


def _rows(input_ids: Tensor | np.ndarray | Sequence) -> tuple[list[np.ndarray], type]:
    """The rows as given, and the dtype of the whole. Whether they are ids is the engine's to check."""
    if isinstance(input_ids, Tensor):
        input_ids = input_ids.asnumpy()
    if isinstance(input_ids, np.ndarray):
        if input_ids.ndim not in (1, 2) or not np.issubdtype(input_ids.dtype, np.integer):
            raise UserError(
                "input_ids: must be whole numbers of shape (tokens,) or (rows, tokens); this is "
                f"{input_ids.dtype} of shape {input_ids.shape}"
            )
        return list(np.atleast_2d(input_ids)), input_ids.dtype if input_ids.dtype == np.int64 else np.int32
    if isinstance(input_ids, Mapping):
        raise UserError(
            "input_ids: this is a whole batch of the tokenizer: write generate(**batch), or batch['input_ids']"
        )
    if isinstance(input_ids, str) or not isinstance(input_ids, Sequence):
        raise UserError(
            f"input_ids: must be token ids (lists, a NumPy array or a MindSpore tensor), not {shown(input_ids)}. "
            "A tokenizer makes them of a text; mindgpt.pipeline takes the text itself."
        )
    one_row = len(input_ids) > 0 and isinstance(input_ids[0], (int, np.integer))
    rows = [_row(row) for row in ([input_ids] if one_row else input_ids)]
    if any(row is None for row in rows):
        raise UserError(
            f"input_ids: must be a list of token ids, or a list of such lists, not {shown(input_ids)}. A tokenizer "
            "makes them of a text; mindgpt.pipeline takes the text itself."
        )
    return rows, np.int64


def _row(ids: Any) -> np.ndarray | None:
    """One row of ids; None if it is none."""
    try:
        row = np.asarray(ids.asnumpy() if isinstance(ids, Tensor) else ids)
    except (TypeError, ValueError):
        return None
    if row.ndim != 1 or row.size and not np.issubdtype(row.dtype, np.integer):
        return None
    return row.astype(np.int64)


def _spans(rows: list[np.ndarray], attention_mask: Tensor | np.ndarray | Sequence | None) -> list[slice]:
    """Where the prompt is in each row: what `attention_mask` marks, or all of it."""
    if attention_mask is None:
        return [slice(0, row.size) for row in rows]
    masks = _masks(attention_mask)
    if [row.shape for row in masks] != [row.shape for row in rows]:
        raise UserError(
            f"attention_mask: must have the shape of input_ids: rows of {[row.size for row in rows]} tokens, not of "
            f"{[row.size for row in masks]}"
        )
    spans = []
    for number, row in enumerate(masks):
        seen = np.flatnonzero(row)
        if not seen.size:
            raise UserError(f"attention_mask: row {number} is 0 throughout: there is no prompt to continue")
        if seen[-1] - seen[0] + 1 != seen.size:
            raise UserError(
                f"attention_mask: row {number} has a 0 between its tokens; padding goes before or after a text"
            )
        spans.append(slice(int(seen[0]), int(seen[-1]) + 1))
    return spans


def _masks(attention_mask: Any) -> list[np.ndarray]:
    """The rows of a mask, after making sure that they hold nothing but 0 and 1."""
    try:
        given = attention_mask.asnumpy() if isinstance(attention_mask, Tensor) else attention_mask
        rows = list(given) if isinstance(given, (np.ndarray, Sequence)) and not isinstance(given, str) else None
        if rows is not None:
            rows = [np.asarray(row) for row in (rows if rows and np.ndim(rows[0]) else [rows])]
            if all(row.ndim == 1 and np.isin(row, (0, 1)).all() for row in rows):
                return rows
    except (TypeError, ValueError):
        pass  # rows of unequal lengths inside a row, or what is no number
    raise UserError(
        "attention_mask: must be 1 at the tokens of a prompt and 0 at its padding, in the shape of input_ids, not "
        f"{shown(attention_mask)}. None means that there is no padding."
    )


def _pad_token_id(model: GPT2LMHeadModel, settings: GenerationSettings, given: int | None) -> int:
    if given is not None:
        size = model.config.vocab_size
        if isinstance(given, bool) or not isinstance(given, (int, np.integer)) or not 0 <= given < size:
            raise UserError(f"pad_token_id: must be a token id, 0 to {size - 1} (vocab_size - 1), not {shown(given)}")
        return int(given)
    if model.config.pad_token_id is not None:
        return model.config.pad_token_id
    ends = settings.eos_token_id  # with an end_token, too, although it ends no text then
    return (ends[0] if isinstance(ends, tuple) else ends) or 0


def _padded(rows: list[list[int]], pad: int) -> np.ndarray:
    """(rows, longest), padded on the right."""
    longest = max(map(len, rows))
    return np.array([row + [pad] * (longest - len(row)) for row in rows])
