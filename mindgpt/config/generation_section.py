"""The settings of generation: their names, defaults and checks, for `model.model_config` and for Python callers alike.

The names are those of `GenerationConfig` of Hugging Face transformers. `docs/generation.md` has them in one table.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from mindgpt.config.section import Count, CountOrZero, Fraction, Number, Positive, Section, shown


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_id, value))


def _checked(allowed: str, is_allowed: Callable[[Any], Any]) -> BeforeValidator:
    """Refuse values that are not `allowed`, a few words that fit behind 'must be'."""

    def check(value: Any) -> Any:
        if not is_allowed(value):
            raise ValueError(f"must be {allowed}, not {shown(value)}")
        return value

    return BeforeValidator(check)


_ID_OR_IDS = _checked(
    "a token id (0 or more) or a list of them", lambda value: _is_id(value) or (_are_ids(value) and value)
)
_IDS = _checked("a list of token ids, such as [262, 290]", _are_ids)
_SEQUENCES = _checked(
    "a list of lists of token ids, such as [[262], [11, 290]]",
    lambda value: isinstance(value, list) and all(ids and _are_ids(ids) for ids in value),
)
_TEXTS = _checked(
    "a list of texts, none of them empty",
    lambda value: isinstance(value, list) and all(text and isinstance(text, str) for text in value),
)
_ONE_AS_LIST = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
_EARLY_STOPPING = _checked("True, False or 'never'", lambda value: isinstance(value, bool) or value == "never")
_ABOVE_ZERO = _checked(
    "above 0 (do_sample: False takes the likeliest token)",
    lambda value: isinstance(value, bool) or not isinstance(value, (int, float)) or value != 0,
)
_ONE_OR_MORE = _checked(
    "1 or more (to draw among all tokens, leave top_k out)",
    lambda value: isinstance(value, bool) or not isinstance(value, int) or value >= 1,
)

_OF_DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical_p")

TokenIds = Annotated[int | list[int], _ID_OR_IDS]
Probability = Annotated[Fraction, Field(gt=0)]


KNOWN_ELSEWHERE = {
    "stop_sequence": "the name is stop_strings",
    "stop": "the name is stop_strings",
    "use_cache": "text is always generated with a key/value cache",
    "use_past": "text is always generated with a key/value cache",
    "return_dict_in_generate": "what is returned are the ids; mindgpt.generation.score gives log-probabilities",
    "output_scores": "what is returned are the ids; mindgpt.generation.score gives log-probabilities",
    "output_logits": "what is returned are the ids; mindgpt.generation.score gives log-probabilities",
    "generation_config": "give its settings one by one, or as **settings",
    "penalty_alpha": "contrastive search is not there; repetition_penalty and no_repeat_ngram_size curb repetition",
    "num_beam_groups": "diverse beam search is not in mindgpt; do_sample: True with num_beams draws the beams",
    "diversity_penalty": "diverse beam search is not in mindgpt; do_sample: True with num_beams draws the beams",
    "logits_processor": "only the rules in docs/generation.md are there",
    "stopping_criteria": "a text ends by stop_strings, eos_token_id, max_new_tokens or max_length",
    "max_time": "a text ends by stop_strings, eos_token_id, max_new_tokens or max_length",
    "assistant_model": "speculative decoding is not in mindgpt",
    "device": "mindspore.set_device chooses the device, before the model is made; a run has --device_target",
    "device_map": "mindspore.set_device chooses the device, before the model is made; a run has --device_target",
    "clean_up_tokenization_spaces": "texts are never cleaned up: what the tokens say is what is returned",
    "random_seed": "the name is seed",
}
"""Names of transformers and MindFormers that are no settings here, each with the reason or the way out."""


class GenerationSection(Section):
    """How texts are continued, but for their greatest length in all, which has two names: see the subclasses.

    `mindgpt.generation.GenerationSettings` says what each means.
    """

    hints: ClassVar = KNOWN_ELSEWHERE | {"max_length": "the name is max_decode_length here, or set max_new_tokens"}

    eos_token_id: TokenIds | None = None
    max_new_tokens: Count | None = None
    min_length: CountOrZero = 0
    min_new_tokens: CountOrZero = 0
    stop_strings: Annotated[list[str], _TEXTS, _ONE_AS_LIST] | None = None
    context_overflow: Literal["refuse", "slide"] = "refuse"

    do_sample: bool = False
    temperature: Annotated[Positive, _ABOVE_ZERO] = 1.0
    top_k: Annotated[Count, _ONE_OR_MORE] | None = None
    top_p: Probability = 1.0
    min_p: Fraction | None = None
    typical_p: Probability = 1.0

    num_return_sequences: Count = 1
    num_beams: Count = 1
    length_penalty: Number = 1.0
    early_stopping: Annotated[bool | Literal["never"], _EARLY_STOPPING] = False

    repetition_penalty: Positive = 1.0
    presence_penalty: Number = 0.0
    frequency_penalty: Number = 0.0
    no_repeat_ngram_size: CountOrZero = 0
    bad_words_ids: Annotated[list[list[int]], _SEQUENCES] | None = None
    forced_bos_token_id: CountOrZero | None = None
    forced_eos_token_id: TokenIds | None = None
    suppress_tokens: Annotated[list[int], _IDS] | None = None


def id_tuple(value: int | Iterable[int] | None) -> tuple[int, ...]:
    """One id, several or None as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Iterable) else (value,)


def contradictions(settings: Any, max_length: int | None) -> Iterator[tuple[str, str]]:
    """What does not fit together in settings whose values are allowed one by one: (key, what is wrong) each.

    Args:
        settings: any object with the fields of `GenerationSection`.
        max_length: the greatest length of prompt and new tokens; None: the context window.
    """
    sequences, beams = settings.num_return_sequences, settings.num_beams
    if beams > 1 and sequences > beams:
        yield "num_return_sequences", f"{sequences} is more than num_beams, {beams}: raise that, or ask for fewer"
    if sequences > 1 and beams == 1 and not settings.do_sample:
        yield (
            "num_return_sequences",
            f"the likeliest tokens make one text for a prompt, not {sequences}: set do_sample: True to draw them, or "
            f"num_beams: {sequences} to search for them",
        )
    for name, without_effect in (("length_penalty", 1), ("early_stopping", False)):
        if beams == 1 and getattr(settings, name) != without_effect:
            yield name, f"is for beam search: set num_beams to 2 or more, or leave {name} out"
    longest_new = settings.max_new_tokens or max_length
    if longest_new is not None and settings.min_new_tokens > longest_new:
        yield "min_new_tokens", f"{settings.min_new_tokens} is more than there may be, {longest_new}"
    if settings.max_new_tokens is None and max_length is not None and settings.min_length > max_length:
        yield "min_length", f"{settings.min_length} is more than the greatest length, {max_length}"
    banned = set(settings.suppress_tokens or ())
    single_words = {ids[0] for ids in settings.bad_words_ids or () if len(ids) == 1}
    for token in sorted(single_words & set(id_tuple(settings.eos_token_id))):
        yield (
            "bad_words_ids",
            f"[{token}] is the eos_token_id, which ends a text and is no word: min_new_tokens puts the end off, "
            "suppress_tokens rules it out",
        )
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = set(id_tuple(getattr(settings, name)))
        if forced and forced <= banned:
            yield name, f"{shown(sorted(forced)[0])} is forced here and ruled out by suppress_tokens: give one of them"


def sampling_without_effect(settings: Any) -> str | None:
    """A sentence about the settings of drawing that differ from their defaults although nothing is drawn; see
    `contradictions`."""
    if settings.do_sample:
        return None
    defaults = {name: GenerationSection.model_fields[name].default for name in _OF_DRAWING}
    named = [name for name, default in defaults.items() if getattr(settings, name) != default]
    if not named:
        return None
    return (
        f"{', '.join(named)} {'has' if len(named) == 1 else 'have'} no effect: do_sample is False, so the likeliest "
        "tokens are taken; set it to True to draw them"
    )


def ids_outside(settings: Any, vocab_size: int) -> Iterator[tuple[str, str]]:
    """The ids in `settings` that the vocabulary does not have, as (key, what is wrong); see `contradictions`."""
    for name in ("eos_token_id", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "bad_words_ids"):
        value = getattr(settings, name)
        ids = [i for word in value or () for i in word] if name == "bad_words_ids" else id_tuple(value)
        for token in sorted({i for i in ids if i >= vocab_size})[:1]:
            yield name, f"{token} is outside the vocabulary, whose size (vocab_size) is {vocab_size}"
