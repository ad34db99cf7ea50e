"""mindgpt: train, fine-tune, evaluate and run the GPT-2 / GPT-3 family on MindSpore, on Ascend and on CPU."""

import importlib
import os
from typing import TYPE_CHECKING, Any

from mindgpt.io.processes import available_cores, quota_binds

# MindSpore's thread pool and OpenMP's threads share the cores. Waiting OpenMP threads that spin keep MindSpore's from
# working (docs/performance.md has the figures), and OpenMP reads this only once, when MindSpore is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if quota_binds():
    os.environ.setdefault("OMP_NUM_THREADS", str(available_cores()))
    os.environ.setdefault("RAYON_NUM_THREADS", str(available_cores()))  # the tokenizer's threads
os.environ.setdefault("GLOG_v", "3")  # MindSpore's own log: errors only, unless the person asked for more

__version__ = "0.2.0"

_HOME = {
    "GPT2Config": "mindgpt.checkpoints.gpt2_config",
    "GPT2Model": "mindgpt.models.gpt2.gpt2",
    "GPT2LMHeadModel": "mindgpt.models.gpt2.gpt2",
    "GPT2ForSequenceClassification": "mindgpt.models.gpt2.gpt2_classifier",
    "GPT2Tokenizer": "mindgpt.tokenizers.gpt2_tokenizer",
    "GPT2TokenizerFast": "mindgpt.tokenizers.gpt2_tokenizer",
    "JiebaTokenizer": "mindgpt.tokenizers.jieba_tokenizer",
    "SentencePieceTokenizer": "mindgpt.tokenizers.sentencepiece_tokenizer",
    "UserError": "mindgpt.config.errors",
    "WordPieceTokenizer": "mindgpt.tokenizers.wordpiece_tokenizer",
    "load_tokenizer": "mindgpt.tokenizers.loading",
    "pipeline": "mindgpt.generation.pipeline",
}
__all__ = [
    "GPT2Config",
    "GPT2ForSequenceClassification",
    "GPT2LMHeadModel",
    "GPT2Model",
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "JiebaTokenizer",
    "SentencePieceTokenizer",
    "UserError",
    "WordPieceTokenizer",
    "__version__",
    "load_tokenizer",
    "pipeline",
]

if TYPE_CHECKING:
    from mindgpt.checkpoints.gpt2_config import GPT2Config
    from mindgpt.config.errors import UserError
    from mindgpt.generation.pipeline import pipeline
    from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel, GPT2Model
    from mindgpt.models.gpt2.gpt2_classifier import GPT2ForSequenceClassification
    from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer, GPT2TokenizerFast
    from mindgpt.tokenizers.jieba_tokenizer import JiebaTokenizer
    from mindgpt.tokenizers.loading import load_tokenizer
    from mindgpt.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
    from mindgpt.tokenizers.wordpiece_tokenizer import WordPieceTokenizer


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: a config or a tokenizer does not need MindSpore."""
    if name not in _HOME:
        raise AttributeError(f"module 'mindgpt' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
