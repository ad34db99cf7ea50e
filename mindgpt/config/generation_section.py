"""The settings of generation: names, meanings, defaults and checks, for YAML, config.json and Python callers alike.

The names are those of `GenerationConfig` of Hugging Face transformers. `docs/generation.md` has them in one table.
"""

from collections.abc import Callable, Iterable, Iterator
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from mindgpt.config.section import Count, CountOrZero, Fraction, Number, Positive, Section, shown


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_ids(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_id, value))


def _checked(allowed: str, is_allowed: Callable[[Any], Any]) -> BeforeValidator:
    """Refuse values that are not `allowed`, which are a few words that continue 'must be'. Lists become tuples."""

    def check(value: Any) -> Any:
        if not is_allowed(value):
            raise ValueError(f"must be {allowed}, not {shown(value)}")
        return _as_tuple(value)

    return BeforeValidator(check)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, (list, tuple)) else value


_ID_OR_IDS = _checked(
    "a token id (0 or more) or a list of them", lambda value: _is_id(value) or (_are_ids(value) and value)
)
_IDS = _checked("a list of token ids, such as [262, 290]", _are_ids)
_SEQUENCES = _checked(
    "a list of lists of token ids, such as [[262], [11, 290]]",
    lambda value: isinstance(value, (list, tuple)) and all(ids and _are_ids(ids) for ids in value),
)
_TEXTS = _checked(
    "a list of texts, none of them empty",
    lambda value: isinstance(value, (list, tuple)) and all(text and isinstance(text, str) for text in value),
)
_ID_OR_TEXT = _checked(
    "a token id (0 or more) or the text of one token, such as '。'",
    lambda value: _is_id(value) or (isinstance(value, str) and value),
)
_ONE_AS_TUPLE = BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
_EARLY_STOPPING = _checked("True, False or 'never'", lambda value: isinstance(value, bool) or value == "never")
_ABOVE_ZERO = _checked(
    "above 0 (do_sample: False takes the likeliest token)",
    lambda value: isinstance(value, bool) or not isinstance(value, (int, float)) or value != 0,
)
_ONE_OR_MORE = _checked(
    "1 or more (to sample among all tokens, leave top_k out)",
    lambda value: isinstance(value, bool) or not isinstance(value, int) or value >= 1,
)

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")

TokenOrText = Annotated[int | str, _ID_OR_TEXT]
TokenIds = Annotated[int | tuple[int, ...], _ID_OR_IDS]
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
    "num_beam_groups": "diverse beam search is not in mindgpt; do_sample: True with num_beams samples the beams",
    "diversity_penalty": "diverse beam search is not in mindgpt; do_sample: True with num_beams samples the beams",
    "logits_processor": "only the rules in docs/generation.md are there",
    "stopping_criteria": "a text ends by stop_strings, eos_token_id, max_new_tokens or max_length",
    "max_time": "a text ends by stop_strings, eos_token_id, max_new_tokens or max_length",
    "assistant_model": "speculative decoding is not in mindgpt",
    "device": "mindspore.set_device chooses the device, before the model is made; a run has --device_target",
    "device_map": "mindspore.set_device chooses the device, before the model is made; a run has --device_target",
    "clean_up_tokenization_spaces": "texts are never cleaned up: what the tokens say is what is returned",
    "random_seed": "the name is seed",
    "start_id": "a text begins with its prompt; prompt_special_tokens puts a token in front of it",  # of bert4keras
    "end_id": "the name is end_token",
    "tokens_to_generate": "the name is max_new_tokens",  # of ModelScope
    "eod_id": "the name is eos_token_id",
    "minlen": "the name is min_new_tokens",
    "maxlen": "the name is max_new_tokens",
    "topk": "the name is top_k",
    "topp": "the name is top_p",
    "n": "the name is num_return_sequences",
}
"""Names of other programs that are no settings here, each with the reason or what to use."""


class GenerationSection(Section):
    """How texts are continued. Every default is without effect.

    The greatest length of prompt and new tokens together has two names, `max_decode_length` in
    `mindgpt.config.GPT2Section` and `max_length` in `mindgpt.generation.GenerationSettings`, so it is declared there.
    Lists are held as tuples.

    How long a text gets:
        max_new_tokens: tokens to add at most; takes precedence over the greatest length.
        min_new_tokens: `eos_token_id` is ruled out until so many tokens are new. (Stop strings still end a text.)
        min_length: the same, counting the prompt.
        eos_token_id: a text ends with this token, or with any of these; None: no token ends it.
        stop_strings: a text ends where one of these occurs in it.
        end_token: a text ends with this token, given as an id or by its text, as in bert4keras's
            `AutoRegressiveDecoder`: at the first of them that is the `min_length`-th new token or a later one, and the
            `min_ends`-th of its kind or a later one. Before, it is a token like any other; the one that ends a text is
            part of it. `eos_token_id` then ends no text, and `min_length` and the greatest length count new tokens, so
            that they mean what `min_new_tokens` and `max_new_tokens` do. Several texts of a prompt come in the order in
            which they ended, then those that did not.
        min_ends: how many times `end_token` occurs in a text that it ends, at least.
        context_overflow: "refuse": a prompt that fills the context length is an error, and every text ends there.
            "slide": the model continues with the last tokens alone.

    How a token is chosen:
        do_sample: sample it from the distribution; False takes the likeliest (greedy, or the best of `num_beams`).
        temperature: logits are divided by it before sampling.
        top_k: sample among this many likeliest tokens; None is all.
        top_p: sample among the fewest likeliest tokens that together have at least this probability.
        min_p: sample among tokens at least this many times as likely as the likeliest.
        typical_p: sample among the fewest tokens of nearly the expected information that together have this
            probability.
        exclusive_filters: `top_k` and `top_p` exclude each other, as in Megatron-LM and ModelScope's GPT-3: one that is
            given replaces the other, 0 is none of them, and `top_k: 1` takes the likeliest token.
        num_return_sequences: texts for each prompt.
        num_beams: texts to pursue at once in beam search; 1: no beam search.
        length_penalty: beams are compared by log-probability / length ** length_penalty.
        early_stopping: when beam search ends: True with `num_beams` texts, False once no better one is likely, "never"
            once none is possible.

    What a text says (`mindgpt.generation.rules` has formulas and sources):
        repetition_penalty: above 1 makes tokens of prompt and text less likely.
        presence_penalty, frequency_penalty: subtracted from the logits of new tokens once, and as often as they occur.
        no_repeat_ngram_size: no sequence of so many tokens occurs twice; 0: no rule.
        bad_words_ids: token sequences that must not occur.
        forced_bos_token_id: the token after a prompt of one token.
        forced_eos_token_id: the token, or tokens to choose from, with which a text of the greatest length ends.
        suppress_tokens: tokens that must not occur.
    """

    hints: ClassVar = KNOWN_ELSEWHERE | {"max_length": "the name is max_decode_length here, or set max_new_tokens"}

    eos_token_id: TokenIds | None = None
    max_new_tokens: Count | None = None
    min_length: CountOrZero = 0
    min_new_tokens: CountOrZero = 0
    stop_strings: Annotated[tuple[str, ...], _TEXTS, _ONE_AS_TUPLE] | None = None
    end_token: TokenOrText | None = None
    min_ends: Count = 1
    context_overflow: Literal["refuse", "slide"] = "refuse"

    do_sample: bool = False
    temperature: Annotated[Positive, _ABOVE_ZERO] = 1.0
    top_k: Annotated[Count, _ONE_OR_MORE] | None = None
    top_p: Probability = 1.0
    min_p: Fraction | None = None
    typical_p: Probability = 1.0
    exclusive_filters: bool = False

    num_return_sequences: Count = 1
    num_beams: Count = 1
    length_penalty: Number = 1.0
    early_stopping: Annotated[bool | Literal["never"], _EARLY_STOPPING] = False

    repetition_penalty: Positive = 1.0
    presence_penalty: Number = 0.0
    frequency_penalty: Number = 0.0
    no_repeat_ngram_size: CountOrZero = 0
    bad_words_ids: Annotated[tuple[tuple[int, ...], ...], _SEQUENCES] | None = None
    forced_bos_token_id: CountOrZero | None = None
    forced_eos_token_id: TokenIds | None = None
    suppress_tokens: Annotated[tuple[int, ...], _IDS] | None = None

    @property
    def samples(self) -> bool:
        """Whether the next token is sampled, and not the likeliest."""
        return self.do_sample and not (self.exclusive_filters and self.top_k == 1)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text wherever they come up, and are no part of it; () if none does, as with an
        `end_token`."""
        return _ids(self.eos_token_id) if self.end_token is None else ()

    @property
    def forced_eos_token_ids(self) -> tuple[int, ...]:
        """The tokens with which a text of the greatest length ends; () if any will do."""
        return _ids(self.forced_eos_token_id)

    def contradictions(self, max_length: int | None) -> Iterator[tuple[str, str]]:
        """What does not fit together although every value is allowed by itself. Yields (key, what is wrong).

        Args:
            max_length: the greatest length of prompt and new tokens; None: the context length.
        """
        sequences, beams = self.num_return_sequences, self.num_beams
        if beams > 1 and sequences > beams:
            yield "num_return_sequences", f"{sequences} is more than num_beams, {beams}: raise that, or ask for fewer"
        if sequences > 1 and beams == 1 and not self.samples:
            sampled = "another top_k than 1" if self.do_sample else "do_sample: True"
            yield (
                "num_return_sequences",
                f"the likeliest tokens make one text for a prompt, not {sequences}: set {sampled} to sample them, or "
                f"num_beams: {sequences} to search for them",
            )
        for name, default in (("length_penalty", 1), ("early_stopping", False)):
            if beams == 1 and getattr(self, name) != default:
                yield name, f"is for beam search: set num_beams to 2 or more, or leave {name} out"
        if self.exclusive_filters and self.top_k is not None and self.top_p < 1:
            yield "top_p", f"{self.top_p:g}: exclusive_filters allows one of top_k and top_p, and top_k is {self.top_k}"
        longest_new = self.max_new_tokens or max_length
        counted_new = ("min_new_tokens",) if self.end_token is None else ("min_new_tokens", "min_length", "min_ends")
        for name in counted_new:
            if longest_new is not None and getattr(self, name) > longest_new:
                yield name, f"{getattr(self, name)} is more than there may be, {longest_new}"
        longest = max_length if self.max_new_tokens is None and "min_length" not in counted_new else None
        if longest is not None and self.min_length > longest:
            yield "min_length", f"{self.min_length} is more than the greatest length, {longest}"
        yield from self._contradictions_of_end_token()
        single_words = {ids[0] for ids in self.bad_words_ids or () if len(ids) == 1}
        for token in sorted(single_words & set(self.eos_token_ids)):
            yield (
                "bad_words_ids",
                f"[{token}] is the eos_token_id, which ends a text and is no word: min_new_tokens postpones the end, "
                "suppress_tokens rules it out",
            )
        banned = set(self.suppress_tokens or ())
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = set(_ids(getattr(self, name)))
            if forced and forced <= banned:
                yield name, f"{min(forced)} is forced here and ruled out by suppress_tokens: give one of them"

    def _contradictions_of_end_token(self) -> Iterator[tuple[str, str]]:
        if self.end_token is None:
            if self.min_ends != 1:
                yield "min_ends", "counts the end_token of a text: set end_token, or leave min_ends out"
            return
        if self.end_token in (self.suppress_tokens or ()):
            yield "suppress_tokens", f"rules out the end_token, {self.end_token}: no text would end with it"
        if (self.end_token,) in (self.bad_words_ids or ()):
            yield "bad_words_ids", f"rule out the end_token, {self.end_token}: no text would end with it"
        if self.num_beams == 1:
            return
        reason = "not with end_token, whose beam search (bert4keras's) gives the likeliest text of each prompt"
        for name in ("do_sample", "num_return_sequences", "length_penalty", "early_stopping"):
            if getattr(self, name) != GenerationSection.model_fields[name].default:
                yield name, f"{reason}: leave {name} out, or num_beams"

    def ids_outside(self, vocab_size: int, key: str = "vocab_size") -> Iterator[tuple[str, str]]:
        """The ids that a vocabulary does not have, whose size is the setting `key`. Yields (key, what is wrong)."""
        names = ("eos_token_id", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "bad_words_ids")
        for name in names if isinstance(self.end_token, (str, NoneType)) else (*names, "end_token"):
            value = getattr(self, name)
            ids = [i for word in value or () for i in word] if name == "bad_words_ids" else _ids(value)
            if outside := [i for i in ids if i >= vocab_size]:
                yield name, f"{min(outside)} is outside the vocabulary, whose size ({key}) is {vocab_size}"

    def unused_sampling_settings(self) -> dict[str, list[str]]:
        """The settings of sampling that are set although nothing is sampled, by reason."""
        fields = GenerationSection.model_fields
        names = [name for name in SAMPLING if getattr(self, name) != fields[name].default]
        reason = "do_sample is False, so the likeliest tokens are taken; set it to True to sample"
        return {reason: names} if names and not self.do_sample else {}


def _ids(value: int | Iterable[int] | None) -> tuple[int, ...]:
    """One id, several or None as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Iterable) else (value,)
