"""The model that is served: what it is called, and what a request asks of it."""

import time
from pathlib import Path
from typing import Any

from mindgpt.config.errors import UserError
from mindgpt.generation.ends import with_ends
from mindgpt.generation.engine import Generator
from mindgpt.generation.pipeline import TextGenerationPipeline, pipeline
from mindgpt.generation.prompt_ids import last_tokens, prompt_ids
from mindgpt.generation.settings import GenerationSettings
from mindgpt.serving.api_errors import ApiError
from mindgpt.serving.completion_request import CompletionRequest, Prompt
from mindgpt.serving.continuations import CompletionPlan, PlannedPrompt
from mindgpt.serving.server_options import ServerOptions
from mindgpt.tokenizers.tokenizer import BaseTokenizer
from mindgpt.tokenizers.unknown_tokens import refuse_unknown

DEFAULT_MAX_TOKENS = 16  # OpenAI's

_NEUTRAL = {  # what a model's config may say for `predict`, and a request that does not say it does not get
    "do_sample": False,
    "temperature": 1.0,
    "top_k": None,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "exclusive_filters": False,
    "num_return_sequences": 1,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "stop_strings": None,
    "max_length": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_eos_token_id": None,
    "context_overflow": "refuse",
}


class ServedModel:
    """A model and its tokenizer under a name.

    Args:
        pipe: the model and its tokenizer.
        name: what requests call it.
        options: the server's limits.
    """

    def __init__(self, pipe: TextGenerationPipeline, name: str, options: ServerOptions):
        self.pipe, self.name, self.created = pipe, name, int(time.time())
        self.tokenizer: BaseTokenizer = pipe.tokenizer
        self.config = pipe.model.config
        self.generator = Generator(pipe.model)
        self._around = pipe.prompt_special_tokens or self.config.prompt_special_tokens
        self._settings = with_ends(pipe.settings.changed(**_NEUTRAL, max_new_tokens=1), self.tokenizer)
        self.context_length = self.config.max_position_embeddings
        self.max_prompt_tokens = min(options.max_prompt_tokens or self.context_length, self.context_length)
        self.max_tokens = min(options.max_tokens or self.context_length, self.context_length)
        self.slots = min(self.max_prompt_tokens + self.max_tokens, self.context_length)
        self._options = options

    @classmethod
    def load(
        cls, path: str | Path, tokenizer: str | Path | None, name: str | None, options: ServerOptions
    ) -> "ServedModel":
        """Load what `mindgpt.pipeline` takes. The name is the folder's or the file's, if None."""
        pipe = pipeline("text-generation", model=path, tokenizer=tokenizer)
        return cls(pipe, name or Path(path).resolve().name, options)

    def card(self) -> dict[str, Any]:
        """The model in the shape of OpenAI's `/v1/models`."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "mindgpt",
            "max_model_len": self.context_length,
        }

    def check_name(self, name: str | None) -> None:
        """Raise `ApiError` if another model is meant."""
        if name not in (None, self.name):
            message = f"The model {name!r} is not here. This server has {self.name!r}."
            raise ApiError(404, message, param="model", code="model_not_found")

    def plan(self, request: CompletionRequest) -> CompletionPlan:
        """What a request asks for.

        Raises:
            ApiError: something that the model, the settings or the server's limits do not allow.
        """
        self.check_name(request.model)
        self._check_numbers(request)
        prompts = self._prompts(request)
        settings = self._generation_settings(request)
        return CompletionPlan(
            prompts=prompts,
            settings=settings,
            n=request.n,
            best_of=request.best_of or request.n,
            logprobs=request.logprobs,
            echo=request.echo,
            logit_bias=request.logit_bias,
            continues=request.max_tokens != 0,
        )

    def _check_numbers(self, request: CompletionRequest) -> None:
        options = self._options
        copies = max(request.n, request.best_of or 1)
        if copies * len(request.prompt) > options.max_texts:
            self._refuse(
                "n",
                f"{len(request.prompt)} prompts with {copies} texts each are more than the {options.max_texts} texts "
                "that a request may ask for (max_texts)",
            )
        if request.best_of is not None and request.best_of < request.n:
            self._refuse("best_of", f"{request.best_of} is less than n, {request.n}")
        if request.best_of is not None and request.best_of > request.n and request.stream:
            self._refuse("best_of", "with stream: the best texts are known at the end only; leave one of them out")
        if request.logprobs is not None and request.logprobs > options.max_logprobs:
            self._refuse("logprobs", f"at most {options.max_logprobs}, not {request.logprobs}")
        if request.stream_options is not None and not request.stream:
            self._refuse("stream_options", "only with stream: true")
        if request.max_tokens == 0 and not request.echo:
            self._refuse("max_tokens", "0 is for the log-probabilities of the prompt: set echo to true, or ask for 1")
        if request.top_k is not None and request.top_k < -1:
            self._refuse("top_k", f"must be 1 or more (0 and -1: all tokens), not {request.top_k}")
        if outside := [token for token in request.logit_bias if token >= self.config.token_count]:
            self._refuse("logit_bias", f"{outside[0]} is outside the vocabulary of {self.config.token_count} tokens")
        self._check_beams(request)

    def _check_beams(self, request: CompletionRequest) -> None:
        if request.num_beams == 1:
            if request.length_penalty != 1:
                self._refuse("length_penalty", "is for beam search: set num_beams to 2 or more, or leave it out")
            return
        if request.num_beams > self._options.max_batch:
            self._refuse("num_beams", f"at most {self._options.max_batch} (max_batch), not {request.num_beams}")
        for name in ("stream", "logit_bias", "best_of"):
            if getattr(request, name):
                self._refuse(name, "not with num_beams above 1")
        if request.logprobs is not None and request.max_tokens != 0:
            self._refuse("logprobs", "not with num_beams above 1")

    def _refuse(self, field: str, message: str) -> None:
        raise ApiError(400, f"{field}: {message}", param=field)

    def _generation_settings(self, request: CompletionRequest) -> GenerationSettings:
        samples = request.temperature > 0 and request.top_p > 0 and request.num_beams == 1
        changes: dict[str, Any] = {
            "do_sample": samples,
            "max_new_tokens": request.max_tokens or 1,  # the prompts' limits count
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "repetition_penalty": request.repetition_penalty,
            "stop_strings": list(request.stop) or None,
            "seed": None if request.seed is None else request.seed % 2**64,
        }
        if samples:
            top_k = request.top_k if request.top_k and request.top_k > 0 else None
            changes |= {"temperature": request.temperature, "top_p": request.top_p, "min_p": request.min_p}
            changes |= {"top_k": top_k}
        if request.num_beams > 1:
            changes |= {"num_beams": request.num_beams, "num_return_sequences": request.n}
            changes |= {"length_penalty": request.length_penalty}
        try:
            settings = self._settings.changed(**changes)
            if request.ignore_eos:
                settings = settings.model_copy(update={"eos_token_id": None, "end_token": None})
            settings.check_vocabulary(self.config.vocab_size)
        except UserError as error:
            raise ApiError(400, str(error).replace("generation: ", "")) from None
        return settings

    # ---- prompts -----------------------------------------------------------------------------------------------------

    def _prompts(self, request: CompletionRequest) -> list[PlannedPrompt]:
        several = len(request.prompt) > 1
        return [
            self._prompt(prompt, f"prompt {number}" if several else "prompt", request)
            for number, prompt in enumerate(request.prompt)
        ]

    def _prompt(self, prompt: Prompt, name: str, request: CompletionRequest) -> PlannedPrompt:
        try:
            if isinstance(prompt, str):
                (ids,) = prompt_ids(self.tokenizer, [prompt], self._around)
                last = last_tokens(self.tokenizer, [ids], self._around)[0] if ids else 0
                if ids:
                    refuse_unknown(self.tokenizer, prompt, ids, name)
                text, spelled = prompt, self._spelled(ids)
            else:
                ids, last, spelled = prompt, prompt[-1], range(len(prompt))
                text = ""
        except UserError as error:
            raise ApiError(400, str(error), param="prompt") from None
        if not ids:
            self._refuse("prompt", f"{name} is empty: there is nothing to continue")
        if max(ids) >= self.config.token_count:
            self._refuse(
                "prompt", f"{name} holds the id {max(ids)}, outside the vocabulary of {self.config.token_count} tokens"
            )
        if not isinstance(prompt, str):
            text = self.tokenizer.decode(ids)
        return PlannedPrompt(list(ids), text, last, self._limit(ids, name, request), spelled)

    def _spelled(self, ids: list[int]) -> range:
        """Which tokens of a prompt are not special ones that `prompt_special_tokens` puts around its text."""
        wanted = self._around or self.tokenizer.prompt_special_tokens
        if wanted == "bos":
            return range(1, len(ids))
        if wanted == "none":
            return range(len(ids))
        text = -1  # no token's id
        around = self.tokenizer.build_inputs_with_special_tokens([text])
        before = around.index(text)
        return range(before, len(ids) - (len(around) - 1 - before))

    def _limit(self, ids: list[int], name: str, request: CompletionRequest) -> int:
        """Tokens of a prompt and its continuation at most."""
        tokens = len(ids)
        if tokens > self.max_prompt_tokens:
            self._too_long(f"{name} has {tokens} tokens; at most {self.max_prompt_tokens} are allowed")
        if request.max_tokens == 0:
            return tokens
        room = self.context_length - tokens
        if request.max_tokens is not None and request.max_tokens > self.max_tokens:
            self._refuse("max_tokens", f"at most {self.max_tokens}, not {request.max_tokens}")
        wanted = (
            min(DEFAULT_MAX_TOKENS, self.max_tokens, max(room, 1)) if request.max_tokens is None else request.max_tokens
        )
        if wanted > room:
            self._too_long(
                f"This model's maximum context length is {self.context_length} tokens; {name} has {tokens}, and "
                f"{wanted} more are asked for (max_tokens)"
            )
        return tokens + wanted

    def _too_long(self, message: str) -> None:
        raise ApiError(400, f"{message}. Shorten the prompt or the completion.", "prompt", "context_length_exceeded")
