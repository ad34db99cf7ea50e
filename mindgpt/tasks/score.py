"""Scores given texts with a language model: log-probabilities and perplexities, per token on request."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import GPT2Section
from mindgpt.config.run_config import RunConfig
from mindgpt.evaluation.perplexity import perplexity
from mindgpt.generation.prompt_ids import prompt_ids
from mindgpt.generation.scoring import score
from mindgpt.generation.text_generation import check_ids, check_tokenizer_fits
from mindgpt.io.files import atomic_write
from mindgpt.runtime.ranks import say
from mindgpt.tasks.model_setup import build_model
from mindgpt.tasks.prompts import Prompt, find_tokenizer, read_prompts
from mindgpt.tokenizers.tokenizer import BaseTokenizer
from mindgpt.tokenizers.unknown_tokens import refuse_unknown

_SHOWN = 60  # characters of a text on the console


@dataclass(frozen=True)
class ScoredText:
    """A text, its token ids, and log P(token | the tokens before it), natural logarithm, of all tokens but the first.

    Nothing comes before the first token, so it has no probability; a text of one token has none at all. With a special
    token in front (`prompt_ids`) that is the first, and every token of the text has a probability.
    """

    text: str
    ids: list[int]
    log_probabilities: np.ndarray

    @property
    def log_probability(self) -> float:
        """Of the text, given its first token."""
        return float(self.log_probabilities.sum(dtype=np.float64))

    @property
    def tokens(self) -> int:
        """The number of tokens that have a probability."""
        return len(self.log_probabilities)

    @property
    def perplexity(self) -> float | None:
        """exp of the mean negative log-probability of a token; None: there is no such token."""
        return perplexity(-self.log_probability / self.tokens) if self.tokens else None


def score_texts(config: RunConfig, files: list[str], output: str | None = None, per_token: bool = False) -> None:
    """Score every text that `files` names, as `read_prompts` reads them; prints a line for each, and one for all.

    A text has the special tokens around it that a prompt would have (`model.model_config.prompt_special_tokens`):
    Chinese GPT-2's [CLS] in front; with "all" also the [SEP] after it, whose probability is that of the text's end.

    Args:
        config: of `run_mode: predict`: model, weights, tokenizer.
        output: a .jsonl file for a record of each text; None: no file.
        per_token: the records hold every token, too.

    Raises:
        UserError: no texts, no tokenizer, weights that do not fit, or a text that is too long for the model.
    """
    texts = read_prompts(files, called="texts")
    tokenizer = find_tokenizer(config)
    check_tokenizer_fits(tokenizer, config.model.config.token_count)
    rows = _encoded(tokenizer, texts, config.model.config)
    check_ids(tokenizer, rows, [text.name for text in texts], config.model.config.token_count)
    for text, row in zip(texts, rows, strict=True):
        refuse_unknown(tokenizer, text.text, row, text.name)
    model, _ = build_model(config)
    rows_with_progress = tqdm(rows, unit=" texts", disable=None if len(rows) > 1 else True)
    scored = [
        ScoredText(prompt.text, ids, score(model, [ids])[0])
        for prompt, ids in zip(texts, rows_with_progress, strict=True)
    ]
    if output is not None:
        _write(output, tokenizer, scored, per_token)
    say(f"\n{'log P':>12} {'tokens':>7} {'perplexity':>12}  text")
    for text in scored:
        say(_line(text.log_probability, text.tokens, text.perplexity, json.dumps(text.text, ensure_ascii=False)))
    tokens, total = sum(text.tokens for text in scored), sum(text.log_probability for text in scored)
    if len(scored) > 1:
        say(_line(total, tokens, perplexity(-total / tokens) if tokens else None, f"all {len(scored)} texts"))
    if output is not None:
        say(f"\n{len(scored)} text(s): {output}")


def _encoded(tokenizer: BaseTokenizer, texts: list[Prompt], config: GPT2Section) -> list[list[int]]:
    """The ids of each text, with the special tokens around it that a prompt has."""
    context_length = config.max_position_embeddings
    rows = prompt_ids(tokenizer, [text.text for text in texts], config.prompt_special_tokens)
    for text, ids in zip(texts, rows, strict=True):
        if len(ids) > context_length + 1:
            raise UserError(
                f"{text.name} has {len(ids)} tokens; {context_length + 1} can be scored at once "
                f"(max_position_embeddings {context_length}, and one that is only predicted). Split it."
            )
    return rows


def _line(log_probability: float, tokens: int, perplexity: float | None, text: str) -> str:
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    value = "-" if perplexity is None else f"{perplexity:.4f}"
    return f"{log_probability:12.4f} {tokens:7} {value:>12}  {shown}"


def _write(output: str, tokenizer: BaseTokenizer, scored: list[ScoredText], per_token: bool) -> None:
    with atomic_write(Path(output), "w") as file:
        for text in scored:
            record = {
                "text": text.text,
                "log_probability": text.log_probability,
                "tokens": text.tokens,
                "perplexity": text.perplexity,
            }
            if per_token:
                values = [None, *text.log_probabilities.tolist()]
                parts = map(tokenizer.token_text, text.ids, [None, *text.ids])
                record["per_token"] = [
                    {"id": token, "text": part.decode("utf-8", "replace"), "log_probability": value}
                    for token, part, value in zip(text.ids, parts, values, strict=True)
                ]
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
