"""A model of mindgpt as lm-evaluation-harness asks its models: log-likelihoods, and texts until a stop string.

What a text's tokens are, which token stands in front of it and what is truncated is as in the harness's own `hf` model
(`lm_eval/models/huggingface.py`), so that results can be compared; `docs/evaluation_harness.md` has the exceptions.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from mindgpt.checkpoints.locations import find_weights
from mindgpt.config.errors import UserError
from mindgpt.config.execution_sections import ContextSection
from mindgpt.config.paths import expanded_path
from mindgpt.config.section import nearest, shown
from mindgpt.generation.ends import with_ends
from mindgpt.generation.engine import generator_of
from mindgpt.generation.prompt_ids import prompt_ids
from mindgpt.generation.scoring import score, score_continuations
from mindgpt.generation.settings import GenerationSettings
from mindgpt.generation.streaming import StopStrings, TextStream
from mindgpt.generation.text_generation import check_tokenizer_fits, stop_check
from mindgpt.io.user_cache import work_folder
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.runtime.device import prepare_device
from mindgpt.tokenizers.loading import holds_tokenizer, load_tokenizer, named_files
from mindgpt.tokenizers.tokenizer import BaseTokenizer

AUTO_BATCH_SIZE = 8
_ARGUMENTS = ("pretrained", "tokenizer", "max_length", "max_gen_toks", "batch_size", "max_batch_size", "device")
_ARGUMENTS += ("dtype", "add_bos_token", "prefix_token_id")
_DTYPES = ("float32", "float16", "bfloat16")

Request = tuple[Any, list[int], list[int]]  # what the harness's cache knows it by, context, continuation


class LmEvalModel(TemplateLM):
    """The model `mindgpt` of lm_eval; its arguments are what `--model_args` takes.

    Args:
        pretrained: what `mindgpt.pipeline` takes as a model: a folder, a `.ckpt` beside its config.json, or a model.
        tokenizer: its folder; None: the one beside the weights.
        max_length: tokens that the model sees at most; None: its context length.
        max_gen_toks: new tokens of a text whose task does not say.
        batch_size: texts at once at most; "auto" is 8. It changes no result.
        max_batch_size: upper limit of `batch_size`.
        device: "cpu" or "npu"; None, and the "cuda:0" that lm_eval hands over unasked: an NPU if there is one.
        dtype: what the model computes in. float32 also for weights in half precision.
        add_bos_token: True: the beginning-of-text token before every text; False: no special token; None: those that
            the model's prompts have.
        prefix_token_id: what the first token of a text without a context follows; None: the beginning-of-text token.

    Raises:
        UserError: an argument is unknown or not allowed; or model and tokenizer are not there, or do not fit.
    """

    def __init__(
        self,
        pretrained: str | Path | GPT2LMHeadModel | None = None,
        tokenizer: str | Path | BaseTokenizer | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            name = next(iter(unknown))
            raise UserError(f"model_args: there is no argument {name}; {nearest(name, _ARGUMENTS)}")
        if pretrained is None:
            raise UserError("model_args: pretrained=PATH is missing: the folder or .ckpt of the model")
        if dtype not in (*_DTYPES, "auto"):
            raise UserError(f"model_args: dtype: must be one of {', '.join(_DTYPES)}, not {shown(dtype)}")
        if add_bos_token not in (None, True, False):
            raise UserError(f"model_args: add_bos_token: must be True or False, not {shown(add_bos_token)}")
        self.batch_size = _batch_size(batch_size, max_batch_size)
        self._max_gen_toks = _count("max_gen_toks", max_gen_toks)
        wanted = None if max_length is None else _count("max_length", max_length)
        _prepare_device(device)
        self.model, self.tokenizer = _load(pretrained, tokenizer, "float32" if dtype == "auto" else dtype)
        self.name = str(pretrained) if isinstance(pretrained, (str, Path)) else type(pretrained).__name__
        context_length = self.model.config.max_position_embeddings
        if wanted is not None and wanted > context_length:
            raise UserError(f"model_args: max_length: {wanted} is more than the context length, {context_length}")
        self.max_length = wanted or context_length
        self._around = {True: "bos", False: "none", None: self.model.config.prompt_special_tokens}[add_bos_token]
        self._prefix = prefix_token_id
        vocab_size = self.model.config.vocab_size
        if prefix_token_id is not None and prefix_token_id not in range(vocab_size):
            raise UserError(
                f"model_args: prefix_token_id: {shown(prefix_token_id)} is no id of the {vocab_size} tokens"
            )

    # ---- text and tokens ---------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text without a context."""
        return self.tokenizer.bos_token_id if self._prefix is None else self._prefix

    @property
    def max_gen_toks(self) -> int:
        """New tokens of a text whose task does not say."""
        return self._max_gen_toks

    @property
    def tokenizer_name(self) -> str:
        """What tells the tokens of a cached request from those of another tokenizer."""
        return self.tokenizer.vocab_hash()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text; without special tokens in front if it begins with the prefix token itself."""
        around = self._around if add_special_tokens is None else "all" if add_special_tokens else "none"
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            around = "none"
        return prompt_ids(self.tokenizer, [string], around)[0]

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids."""
        return self.tokenizer.decode(tokens, skip_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Refuse: models of the GPT-2 family have no chat template."""
        raise UserError("apply_chat_template: models of the GPT-2 family have no chat template; leave it out")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside the results."""
        config = self.model.config
        return {"model_num_parameters": self.model.num_parameters(), "model_dtype": str(config.compute_dtype)}

    # ---- log-likelihoods ---------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each continuation given its context: its log-probability, and whether greedy decoding would write it.

        Raises:
            UserError: a continuation is empty.
        """
        for request in requests:
            if request.args[1] == "":
                raise UserError(f"{request.task_name}, document {request.doc_id}: the continuation to score is empty")
        return super().loglikelihood(requests, disable_tqdm)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        return context_ids or [self.prefix_token_id], continuation_ids  # a context of spaces has no tokens

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitting(request) for request in requests]
        rows = [tuple(context + continuation[:-1]) for context, continuation in pairs]
        order = sorted(range(len(pairs)), key=lambda number: (-len(rows[number]), rows[number]))
        groups = [list(group) for _, group in itertools.groupby(order, key=rows.__getitem__)]  # read once
        answers: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), desc="Running loglikelihood requests", disable=disable_tqdm) as progress:
            for start in range(0, len(groups), self.batch_size):
                numbers = [number for group in groups[start : start + self.batch_size] for number in group]
                for number, scored in zip(
                    numbers, score_continuations(self.model, [pairs[number] for number in numbers]), strict=True
                ):
                    answers[number] = float(scored[0].sum()), bool(scored[1].all())
                    if requests[number][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[number][0], answers[number])
                progress.update(len(numbers))
        return [answers[number] for number in range(len(requests))]

    def _fitting(self, request: Request) -> tuple[list[int], list[int]]:
        """Context and continuation without what is too long, from the left."""
        _, context, continuation = request
        if not continuation:
            raise UserError(
                "A continuation has no token of its own: it becomes one token with its context, or is the prefix "
                "token alone."
            )
        if len(continuation) > self.max_length:
            raise UserError(
                f"A continuation has {len(continuation)} tokens, and the model sees {self.max_length} (max_length)."
            )
        room = self.max_length + 1 - len(continuation)
        return context[-room:], continuation

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, read in windows of `max_length` tokens."""
        results = []
        for request in tqdm(requests, desc="Running rolling requests", disable=disable_tqdm):
            (text,) = request.args
            total = sum(float(values.sum(dtype=np.float64)) for values in self._scored_windows(text))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            results.append(total)
        return results

    def _scored_windows(self, text: str) -> Iterator[np.ndarray]:
        prefix = self.prefix_token_id
        ids = self.tok_encode(text)
        ids = ids[1:] if self._around != "none" and ids[:1] == [prefix] else ids  # it is in front once, and not scored
        for window in get_rolling_token_windows(ids, prefix, self.max_length, context_len=1):
            context, continuation = make_disjoint_window(window)
            (values,) = score(self.model, [context + continuation])
            yield values[len(context) - 1 :]

    # ---- texts -------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until one of its stop strings.

        A sampled text depends on the seed that lm_eval gives NumPy and on the request's place, not on the batch.
        """
        seed = int(np.random.randint(2**31))
        by_settings: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            by_settings.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        texts: dict[int, str] = {}
        with tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm) as progress:
            for numbers in by_settings.values():
                given = requests[numbers[0]].args[1]
                settings, until = self._settings(given, seed)
                room = self.max_length - settings.max_new_tokens
                prompts = {number: self._prompt(requests[number].args[0], room) for number in numbers}
                numbers.sort(key=lambda number: len(prompts[number]))
                for start in range(0, len(numbers), self.batch_size):
                    some = numbers[start : start + self.batch_size]
                    written = self._continued([prompts[number] for number in some], settings, until, some)
                    for number, text in zip(some, written, strict=True):
                        texts[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    progress.update(len(some))
        return [texts[number] for number in range(len(requests))]

    def _settings(self, given: dict[str, Any], seed: int) -> tuple[GenerationSettings, list[str]]:
        """The settings that a task's `generation_kwargs` ask for, and its stop strings."""
        if "max_length" in given:
            raise UserError("generation_kwargs: max_length: use max_gen_toks, the number of new tokens")
        asked = dict(normalize_gen_kwargs(given, self.max_gen_toks))
        until = handle_stop_sequences(asked.pop("until", None), eos=self.tokenizer.decode([self.eot_token_id]))
        tokens = asked.pop("max_gen_toks")
        if tokens >= self.max_length:
            raise UserError(
                f"generation_kwargs: max_gen_toks is {tokens}, and the model sees {self.max_length} tokens "
                "(max_length), which leaves no room for a context. Lower it: --gen_kwargs max_gen_toks=N"
            )
        if not asked["do_sample"]:
            asked.pop("temperature", None)
        asked |= {"max_new_tokens": tokens, "num_return_sequences": 1, "seed": seed}
        settings = GenerationSettings.from_config(self.model.config, **asked)
        return with_ends(settings, self.tokenizer), [text for text in until if text]

    def _prompt(self, context: str, room: int) -> list[int]:
        return self.tok_encode(context)[-room:] or [self.prefix_token_id]

    def _continued(
        self, prompts: list[list[int]], settings: GenerationSettings, until: list[str], numbers: list[int]
    ) -> Iterator[str]:
        stop_strings = StopStrings(until)
        last = [prompt[-1] for prompt in prompts]
        stop = stop_check(stop_strings, self.tokenizer, last)
        rows = generator_of(self.model).generate(prompts, settings, row_numbers=numbers, stop=stop)
        left_out = set(self.tokenizer.all_special_ids)
        for row, previous in zip(rows, last, strict=True):
            stream = TextStream(self.tokenizer, stop_strings, previous)
            yield "".join(stream.add(token) for token in row if token not in left_out) + stream.end()


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"model_args: {name}: must be a whole number, 1 or more, not {shown(value)}")
    return value


def _batch_size(value: int | str | None, largest: int | None) -> int:
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    if isinstance(value, str) and value.startswith("auto"):
        value = AUTO_BATCH_SIZE
    size = _count("batch_size", 1 if value is None else value)
    return size if largest is None else min(size, _count("max_batch_size", largest))


def _prepare_device(device: str | None) -> None:
    kind = str(device or "cuda").split(":")[0].lower()
    targets = {"cuda": None, "cpu": "CPU", "npu": "Ascend", "ascend": "Ascend"}
    if kind not in targets:
        raise UserError(f"device: must be cpu or npu, not {shown(device)}")
    # Not fused: the approximations of MindSpore's fused kernels are in the fourth digit.
    prepare_device(ContextSection(device_target=targets[kind], enable_graph_kernel=False), work_folder())


def _load(model: Any, tokenizer: Any, dtype: str) -> tuple[GPT2LMHeadModel, BaseTokenizer]:
    """Model and tokenizer, which fit together."""
    if not isinstance(model, (str, Path, GPT2LMHeadModel)):
        raise UserError(f"model_args: pretrained: must be the path of a language model, not {shown(model)}")
    if tokenizer is None:
        if isinstance(model, GPT2LMHeadModel):
            raise UserError("tokenizer=... is missing: a model that is no folder has none beside it")
        weights = find_weights(expanded_path(model))
        tokenizer = weights if weights.is_dir() else weights.parent
        if not holds_tokenizer(tokenizer):
            raise UserError(f"model_args: {tokenizer} holds no tokenizer ({named_files()}): name it with tokenizer=DIR")
    if not isinstance(tokenizer, BaseTokenizer):
        tokenizer = load_tokenizer(tokenizer)
    if not isinstance(model, GPT2LMHeadModel):
        model = GPT2LMHeadModel.from_pretrained(model, compute_dtype=dtype, softmax_compute_type="float32")
    check_tokenizer_fits(tokenizer, model.config.vocab_size)
    return model, tokenizer
