"""Text in, text out: prompts through the tokenizer, in batches, and back; whole or piece by piece."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from mindgpt.config.errors import UserError
from mindgpt.config.section import shown
from mindgpt.generation.ends import with_ends
from mindgpt.generation.engine import Generator
from mindgpt.generation.prompt_ids import last_tokens, prompt_ids
from mindgpt.generation.requests import length_limits
from mindgpt.generation.settings import GenerationSettings
from mindgpt.generation.streaming import StopStrings, TextStream
from mindgpt.tokenizers.loading import may_be_padding
from mindgpt.tokenizers.tokenizer import BaseTokenizer
from mindgpt.tokenizers.unknown_tokens import refuse_unknown

OnText = Callable[[int, str], None]


@dataclass(frozen=True)
class Completion:
    """What a prompt was continued with.

    `text` is the continuation alone, without the end-of-text token or the stop string that ended it, but with an
    `end_token`; `token_ids` are its new tokens, with any of them. `finish_reason` says what ended it: "eos" (such a
    token), "stop" (a stop string), or "length", a limit of the settings or the context length.
    """

    prompt: str
    text: str
    token_ids: list[int]
    finish_reason: Literal["eos", "stop", "length"]


OnBatch = Callable[[list[int], list[Completion]], None]


def generate_text(
    generator: Generator,
    tokenizer: BaseTokenizer,
    prompts: Sequence[str],
    settings: GenerationSettings,
    batch_size: int = 8,
    numbers: Sequence[int] | None = None,
    on_text: OnText | None = None,
    on_batch: OnBatch | None = None,
    prompt_special_tokens: str | None = None,
) -> list[Completion]:
    """Continue each prompt. Prompts of like length share a batch; neither that nor `batch_size` changes a text.

    Args:
        generator: holds the model.
        tokenizer: the model's own.
        prompts: texts of at least one token each.
        settings: how to choose tokens and when to stop. An `eos_token_id` of None is the tokenizer's.
        batch_size: prompts to run at once at most.
        numbers: with the seed they name each prompt's random stream; 0, 1, 2... if None.
        on_text: called as `on_text(place, piece)` with each piece of new text as soon as it is certain, where `place`
            is that of the completion in the list to be returned; the pieces, joined, are the completion's `text`.
        on_batch: called as `on_batch(places, completions)` with those that a batch has done; places as in `on_text`.
        prompt_special_tokens: the special tokens around each prompt, as `prompt_ids` takes it; None: as the model's
            config says.

    Returns:
        The completions, in the order of the prompts; with `num_return_sequences` n, n of each, one after another.

    Raises:
        UserError: the tokenizer has more tokens than the model, or a prompt is empty or leaves no room for a token;
            before anything is generated. Text as it comes is asked of a beam search, or of several texts whose order
            their ends decide.
    """
    check_batch_size(batch_size)
    settings = with_ends(settings, tokenizer)
    encoded, last = _encoded(generator, tokenizer, prompts, settings, prompt_special_tokens)
    streams = range(len(encoded)) if numbers is None else numbers
    stop_strings = StopStrings(settings.stop_strings or ())
    copies = settings.num_return_sequences
    completions: list[Completion | None] = [None] * (len(encoded) * copies)
    by_length = sorted(range(len(encoded)), key=lambda number: len(encoded[number]))
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        places = [number * copies + copy for number in batch for copy in range(copies)]
        before = [last[place // copies] for place in places]
        writer = None
        if on_text is not None:
            writer = _Writer(
                [TextStream(tokenizer, stop_strings, token) for token in before], settings, places, on_text
            )
        of_rows = before if settings.num_beams == 1 else [last[number] for number in batch]
        rows = generator.generate(
            [encoded[number] for number in batch],
            settings,
            on_token=writer,
            row_numbers=[streams[number] for number in batch],
            stop=stop_check(stop_strings, tokenizer, of_rows) if settings.stop_strings else None,
        )
        if writer is not None:
            writer.end()
        for place, row, token in zip(places, rows, before, strict=True):
            stream = TextStream(tokenizer, stop_strings, token)
            completions[place] = completion_of(prompts[place // copies], row, settings, stream)
        if on_batch is not None:
            on_batch(places, [completions[place] for place in places])
    return completions


def stream_text(
    generator: Generator,
    tokenizer: BaseTokenizer,
    prompt: str,
    settings: GenerationSettings,
    prompt_special_tokens: str | None = None,
) -> Iterator[str]:
    """The continuation of one prompt, piece by piece as it is generated; joined, it is what `generate_text` returns.

    The model runs only while a piece is asked for. From the first piece on, until the stream is read to its end, closed
    or dropped, nothing else can be generated with this model (other models can); other threads wait for one step.

    Raises:
        UserError: as `generate_text`, or another stream of this model is open; when the first piece is asked for.
    """
    if settings.num_return_sequences > 1:
        raise UserError("num_return_sequences: several texts cannot be read as one stream; ask for 1")
    settings = with_ends(settings, tokenizer)
    encoded, last = _encoded(generator, tokenizer, [prompt], settings, prompt_special_tokens)
    stop_strings = StopStrings(settings.stop_strings or ())
    text = TextStream(tokenizer, stop_strings, *last)
    with closing(generator.stream(encoded, settings, stop=stop_check(stop_strings, tokenizer, last))) as steps:
        for ((_, token),) in steps:
            piece = "" if token in settings.eos_token_ids else text.add(token)
            if piece:
                yield piece
    rest = text.end()
    if rest:
        yield rest


class _Writer:
    """Turns the tokens of a batch's rows into text as they come."""

    def __init__(self, streams: list[TextStream], settings: GenerationSettings, places: Sequence[int], on_text: OnText):
        self._eos = settings.eos_token_ids
        self._streams = streams
        self._places = places
        self._on_text = on_text

    def __call__(self, row: int, token: int) -> None:
        self._hand_on(row, "" if token in self._eos else self._streams[row].add(token))

    def end(self) -> None:
        for row, stream in enumerate(self._streams):
            self._hand_on(row, stream.end())

    def _hand_on(self, row: int, piece: str) -> None:
        if piece:
            self._on_text(self._places[row], piece)


def _encoded(
    generator: Generator,
    tokenizer: BaseTokenizer,
    prompts: Sequence[str],
    settings: GenerationSettings,
    prompt_special_tokens: str | None,
) -> tuple[list[list[int]], list[int]]:
    """The ids of each prompt, checked, and the last token of its text."""
    config = generator.config
    around = prompt_special_tokens or config.prompt_special_tokens
    sizes = config.vocab_size, config.max_position_embeddings
    encoded = encode_prompts(tokenizer, prompts, settings, *sizes, prompt_special_tokens=around)
    return encoded, last_tokens(tokenizer, encoded, around)


def stop_check(
    stop_strings: StopStrings, tokenizer: BaseTokenizer, last: Sequence[int]
) -> Callable[[int, Sequence[int]], bool]:
    """The `stop` of `Generator.generate` that ends a row at a stop string.

    Args:
        last: the last token of the prompt of each row (in a beam search of each prompt).
    """

    def stop(row: int, new_tokens: Sequence[int]) -> bool:
        return stop_strings.end_with(tokenizer, new_tokens, last[row])

    return stop


def encode_prompts(
    tokenizer: BaseTokenizer,
    prompts: Sequence[str],
    settings: GenerationSettings,
    vocab_size: int,
    context_length: int,
    names: Sequence[str] | None = None,
    prompt_special_tokens: str | None = None,
) -> list[list[int]]:
    """The ids of each prompt, after making sure that all can be continued.

    Args:
        vocab_size, context_length: of the model (`vocab_size`, `max_position_embeddings`).
        names: what to call each prompt in messages; "Prompt 0", "Prompt 1"... if None.
        prompt_special_tokens: see `prompt_ids`.

    Raises:
        UserError: the tokenizer has more tokens than the model, a prompt is empty, unknown to the vocabulary or leaves
            no room for a token, or `end_token` is not a token.
    """
    check_tokenizer_fits(tokenizer, vocab_size)
    with_ends(settings, tokenizer).check_vocabulary(vocab_size)
    if isinstance(prompts, str):
        raise UserError("prompts: must be a list of texts; put a single one in brackets: [prompt]")
    encoded = prompt_ids(tokenizer, prompts, prompt_special_tokens)
    names = names or [f"Prompt {number}" for number in range(len(encoded))]
    for name, ids in zip(names, encoded, strict=True):
        if not ids:
            raise UserError(f"{name} is empty: there is nothing to continue. {tokenizer.bos_token!r} starts a text.")
    check_ids(tokenizer, encoded, names, vocab_size)
    for name, prompt, ids in zip(names, prompts, encoded, strict=True):
        refuse_unknown(tokenizer, prompt, ids, name)
    length_limits(encoded, settings, context_length, names)
    return encoded


def check_batch_size(batch_size: int) -> None:
    """Raise `UserError` for what is no number of texts to run at once."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise UserError(f"batch_size: must be a whole number, 1 or more, not {shown(batch_size)}")


def check_tokenizer_fits(tokenizer: BaseTokenizer, vocab_size: int) -> None:
    """Raise `UserError` if the tokenizer knows ids for which the model has no embedding, or the model so many for which
    the tokenizer has no text that they are not the padding of a table (`may_be_padding`).

    A padding or unknown token after the table does no harm: no text becomes it unless it spells its name, for which
    there is `check_ids`.
    """
    if tokenizer.text_vocab_size <= vocab_size and may_be_padding(tokenizer, vocab_size):
        return
    way_out = (
        "Use the tokenizer that the model was trained with; or, if the weights have another size, set vocab_size to it "
        "(model.model_config.vocab_size in the YAML)."
    )
    if tokenizer.new_tokens and len(tokenizer) - len(tokenizer.new_tokens) <= vocab_size < len(tokenizer):
        roles = [role for role, token in tokenizer.special_tokens_map.items() if token in tokenizer.new_tokens]
        key = "eos_token" if "eos_token" in roles else roles[0]
        way_out = (
            f"{', '.join(tokenizer.new_tokens)} was added as {', '.join(roles)}, since the vocabulary lacks it. If "
            f"another of its tokens is meant, name it: processor.tokenizer.{key} in the YAML, {key}=... in Python."
        )
    raise UserError(
        f"The tokenizer has {len(tokenizer)} tokens, the model's vocab_size is {vocab_size}: they do not belong "
        f"together. {way_out}"
    )


def check_ids(tokenizer: BaseTokenizer, rows: Sequence[Sequence[int]], names: Sequence[str], vocab_size: int) -> None:
    """Raise `UserError` if a text, called by its name, spells a token after the model's table."""
    if len(tokenizer) <= vocab_size:
        return
    for name, row in zip(names, rows, strict=True):
        if (highest := max(row, default=0)) >= vocab_size:
            token = tokenizer.convert_ids_to_tokens(highest)
            raise UserError(
                f"{name} holds the token {token!r}, id {highest}, but the model's vocab_size is {vocab_size}. Leave it "
                "out of the text."
            )


def completion_of(prompt: str, ids: list[int], settings: GenerationSettings, stream: TextStream) -> Completion:
    """The completion of a prompt by new tokens; `stream` is one that has not begun."""
    ended = bool(ids) and settings.end_with(ids)
    text = "".join(map(stream.add, ids[:-1] if ended and settings.end_token is None else ids)) + stream.end()
    return Completion(prompt, text, ids, "stop" if stream.stopped else "eos" if ended else "length")
