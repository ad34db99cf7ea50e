"""The bodies of responses to `/v1/completions`, whole or as server-sent events."""

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from mindgpt.serving.api_errors import ApiError
from mindgpt.serving.completion_request import CompletionRequest
from mindgpt.serving.continuations import CompletionPlan, TextPiece
from mindgpt.serving.scheduler import CompletionJob
from mindgpt.serving.token_logprobs import logprobs_body

Pieces = AsyncIterator[TextPiece]


class CompletionResponse:
    """The response to one request."""

    def __init__(self, model: str, request: CompletionRequest, plan: CompletionPlan):
        self._request, self._plan = request, plan
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def usage(self, job: CompletionJob | None) -> dict[str, int]:
        """The field `usage`."""
        prompt, new = sum(len(prompt.ids) for prompt in self._plan.prompts), job.new_tokens if job else 0
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _choice(self, piece: TextPiece) -> dict[str, Any]:
        number = self._plan.logprobs
        logprobs = None if number is None else logprobs_body(piece.tokens, with_top=number > 0)
        return {"text": piece.text, "index": piece.index, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    async def whole(self, pieces: Pieces, job: CompletionJob | None) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        choices = [TextPiece(index) for index in range(len(self._plan.prompts) * self._plan.n)]
        async for piece in pieces:
            choice = choices[piece.index]
            choice.text += piece.text
            choice.tokens += piece.tokens
            choice.finish_reason = piece.finish_reason or choice.finish_reason
        return self._head | {"choices": list(map(self._choice, choices)), "usage": self.usage(job)}

    async def events(self, pieces: Pieces, job: CompletionJob | None) -> AsyncIterator[bytes]:
        """The body of a response that is streamed. An error after the first event is an event, too."""
        options = self._request.stream_options
        with_usage = options is not None and options.include_usage
        without = {"usage": None} if with_usage else {}
        try:
            async for piece in pieces:
                if piece.text or piece.tokens or piece.finish_reason:
                    yield _event(self._head | {"choices": [self._choice(piece)]} | without)
        except ApiError as error:
            yield _event(error.body())
        else:
            if with_usage:
                yield _event(self._head | {"choices": [], "usage": self.usage(job)})
        yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"
