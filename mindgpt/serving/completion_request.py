"""The body of `POST /v1/completions`: OpenAI's fields, and the settings of generation that OpenAI has not."""

import json
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from mindgpt.config.section import (
    Count,
    CountOrZero,
    Number,
    Positive,
    Section,
    any_value,
    dotted,
    only,
    problems_of,
    shown,
)
from mindgpt.serving.api_errors import ApiError

MAX_STOPS = 4

Prompt = str | list[int]


def _prompts(value: Any) -> list[Prompt]:
    """A prompt or a list of prompts, each a text or a list of token ids, as a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(_is_id(part) for part in value):
            return [value]
        if all(isinstance(part, str) for part in value):
            return value
        if all(isinstance(part, list) and part and all(map(_is_id, part)) for part in value):
            return value
    raise ValueError(f"must be a text, token ids, or a list of texts or of lists of token ids, not {shown(value)}")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _stops(value: Any) -> tuple[str, ...]:
    """A stop string or a list of them."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"must be a text or a list of texts that are not empty, not {shown(value)}")
    if len(texts) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} texts, not {len(texts)}")
    return tuple(texts)


def _biases(value: Any) -> dict[int, float]:
    """Token ids, which JSON spells as texts, with what is added to their logits."""
    if not isinstance(value, dict):
        raise ValueError(f"must be an object of token ids and numbers, not {shown(value)}")
    biases = {}
    for token, bias in value.items():
        if not (str(token).isascii() and str(token).isdecimal()):
            raise ValueError(f"{shown(token)} is no token id")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise ValueError(f"token {token}: must be a number from -100 to 100, not {shown(bias)}")
        biases[int(token)] = float(bias)
    return biases


def _between(lowest: float, highest: float) -> Callable[[float], float]:
    def check(value: float) -> float:
        if not lowest <= value <= highest:
            raise ValueError(f"must be from {lowest:g} to {highest:g}, not {value:g}")
        return value

    return check


class StreamOptions(Section):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False  # OpenAI's padding against eavesdroppers who measure sizes; there is none here


class CompletionRequest(Section):
    """A request for completions. null means that a field is not given.

    Beyond OpenAI's: `top_k`, `min_p`, `repetition_penalty`, `num_beams`, `length_penalty` and `ignore_eos`. See
    docs/serving.md.
    """

    hints: ClassVar = {
        "messages": "this is a server of text completions; send the text as prompt",
        "max_completion_tokens": "the name is max_tokens",
        "max_new_tokens": "the name is max_tokens",
        "min_tokens": "there is no such setting",
        "num_return_sequences": "the name is n",
        "stop_strings": "the name is stop",
    }
    ignored: ClassVar = any_value("user metadata") | {
        "suffix": only("", reason="text is only continued, not inserted before a suffix")
    }

    model: str | None = None
    prompt: Annotated[list[Prompt], BeforeValidator(_prompts)]
    max_tokens: CountOrZero | None = None
    temperature: Annotated[Number, AfterValidator(_between(0, 2))] = 1.0
    top_p: Annotated[Number, AfterValidator(_between(0, 1))] = 1.0
    n: Count = 1
    best_of: Count | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: CountOrZero | None = None
    echo: bool = False
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops)] = ()
    presence_penalty: Annotated[Number, AfterValidator(_between(-2, 2))] = 0.0
    frequency_penalty: Annotated[Number, AfterValidator(_between(-2, 2))] = 0.0
    logit_bias: Annotated[dict[int, float], BeforeValidator(_biases)] = Field(default_factory=dict)
    seed: int | None = None
    top_k: int | None = None
    min_p: Annotated[Number, AfterValidator(_between(0, 1))] | None = None
    repetition_penalty: Positive = 1.0
    num_beams: Count = 1
    length_penalty: Number = 1.0
    ignore_eos: bool = False


def read_request(body: bytes) -> CompletionRequest:
    """The request in a body.

    Raises:
        ApiError: it is no JSON object, or a field is unknown or has a value that is not allowed; all are named.
    """
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"The body is not UTF-8: byte {error.start} is wrong.", code="invalid_json") from None
    except (ValueError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"The body is not JSON: {what}.", code="invalid_json") from None
    if not isinstance(data, dict):
        raise ApiError(400, f"The body must be a JSON object, not {shown(data)}.", code="invalid_json")
    try:
        return CompletionRequest.model_validate(data)
    except ValidationError as error:
        problems = [(dotted(where), what) for where, what in problems_of(error)]
    message = "; ".join(f"{field}: {what}" for field, what in problems)
    raise ApiError(400, message, param=problems[0][0])


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
