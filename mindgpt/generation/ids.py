"""Token ids in, token ids out: what `GPT2LMHeadModel.generate` does, in the forms that users of transformers know."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol

import numpy as np
from mindspore import Tensor

from mindgpt.config.errors import UserError
from mindgpt.config.section import nearest, shown
from mindgpt.generation.engine import generate
from mindgpt.generation.settings import GenerationSettings
from mindgpt.generation.streaming import StopStrings
from mindgpt.generation.text import stop_check
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.models.gpt2.gpt2_tokenizer import GPT2Tokenizer

BESIDE_SETTINGS = ("input_ids", "attention_mask", "streamer", "tokenizer", "pad_token_id")


class Streamer(Protocol):
    """What is told of each token as it comes: ours (`streaming.TextStreamer`) or one of transformers."""

    def put(self, value: np.ndarray) -> None:
        """First the prompt, (1, T); then each new token, (1,)."""

    def end(self) -> None:
        """The text is at its end."""


def generate_ids(
    model: GPT2LMHeadModel,
    input_ids: Tensor | np.ndarray | Sequence,
    attention_mask: Tensor | np.ndarray | Sequence | None = None,
    streamer: Streamer | None = None,
    tokenizer: GPT2Tokenizer | None = None,
    pad_token_id: int | None = None,
    /,
    **settings: Any,
) -> Tensor | list[list[int]]:
    """See `GPT2LMHeadModel.generate`."""
    settings = _settings(model, settings)
    as_tensor = isinstance(input_ids, (Tensor, np.ndarray))
    rows, dtype = _rows(input_ids)
    spans = _spans(rows, attention_mask)
    prompts = [row[span].tolist() for row, span in zip(rows, spans, strict=True)]
    stop = None
    if settings.stop_strings:
        if tokenizer is None:
            raise UserError("generation: stop_strings: give the tokenizer=, too: they are texts, and these are ids")
        stop = stop_check(StopStrings(settings.stop_strings), tokenizer)
    copies = settings.num_return_sequences
    on_token = None
    if streamer is not None:
        if len(prompts) * copies > 1 or settings.num_beams > 1:
            raise UserError("streamer: follows one text; give one prompt, num_return_sequences 1 and num_beams 1")
        streamer.put(np.asarray([prompts[0]], np.int64))

        def on_token(_: int, token: int) -> None:
            streamer.put(np.asarray([token], np.int64))

    new = generate(model, prompts, settings, on_token, stop=stop)
    if streamer is not None:
        streamer.end()
    # What pads a prompt on the left stays where it is, as in transformers; what pads it on the right makes room.
    whole = [rows[n // copies][: spans[n // copies].stop].tolist() + ids for n, ids in enumerate(new)]
    if not as_tensor:
        return whole
    return Tensor(_padded(whole, _pad_token_id(model, settings, pad_token_id)).astype(dtype))


def _settings(model: GPT2LMHeadModel, given: dict[str, Any]) -> GenerationSettings:
    known = [*(field.name for field in fields(GenerationSettings)), *BESIDE_SETTINGS]
    for name in given:
        if name not in known:
            raise UserError(f"generate: {name}: there is no such argument; {nearest(name, known)}")
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
    if isinstance(input_ids, str) or not isinstance(input_ids, Sequence):
        raise UserError(
            f"input_ids: must be token ids (lists, a NumPy array or a MindSpore tensor), not {shown(input_ids)}. "
            "A tokenizer makes them of a text; mindgpt.pipeline takes the text itself."
        )
    rows = [input_ids] if input_ids and isinstance(input_ids[0], (int, np.integer)) else input_ids
    try:
        return [np.asarray(row, np.int64 if len(row) == 0 else None) for row in rows], np.int64
    except (TypeError, ValueError):
        raise UserError("input_ids: must be a list of token ids, or a list of such lists") from None


def _spans(rows: list[np.ndarray], attention_mask: Tensor | np.ndarray | Sequence | None) -> list[slice]:
    """Where the prompt is in each row: what `attention_mask` marks, or all of it."""
    if attention_mask is None:
        return [slice(0, row.size) for row in rows]
    mask = list(attention_mask.asnumpy() if isinstance(attention_mask, Tensor) else attention_mask)
    masks = [np.asarray(row) for row in (mask if mask and np.ndim(mask[0]) else [mask])]
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
                f"attention_mask: row {number} has a 0 between its tokens; padding goes before or behind a text"
            )
        spans.append(slice(int(seen[0]), int(seen[-1]) + 1))
    return spans


def _pad_token_id(model: GPT2LMHeadModel, settings: GenerationSettings, given: int | None) -> int:
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, (int, np.integer)) or given < 0:
            raise UserError(f"pad_token_id: must be a token id, 0 or more, not {shown(given)}")
        return int(given)
    if model.config.pad_token_id is not None:
        return model.config.pad_token_id
    return settings.eos_token_ids[0] if settings.eos_token_ids else 0


def _padded(rows: list[list[int]], pad: int) -> np.ndarray:
    """(rows, longest), padded on the right."""
    longest = max(map(len, rows))
    return np.array([row + [pad] * (longest - len(row)) for row in rows])
