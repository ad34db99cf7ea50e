"""Continuing texts: sampling rules, the engine with a key/value cache, text in and text out."""

from mindgpt.generation.engine import Generator, generate
from mindgpt.generation.sampling import GenerationSettings
from mindgpt.generation.text import Completion, generate_text

__all__ = ["Completion", "GenerationSettings", "Generator", "generate", "generate_text"]
