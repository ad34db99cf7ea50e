"""Continuing texts: rules, greedy, sampling and beam search with a key/value cache, text in and text out, scoring."""

from mindgpt.generation.engine import Generator, generate
from mindgpt.generation.scoring import score
from mindgpt.generation.settings import GenerationSettings
from mindgpt.generation.streaming import TextStreamer
from mindgpt.generation.text_generation import Completion, generate_text, stream_text

__all__ = [
    "Completion",
    "GenerationSettings",
    "Generator",
    "TextStreamer",
    "generate",
    "generate_text",
    "score",
    "stream_text",
]
