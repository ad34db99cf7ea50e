"""Recognises, by the names of their weights, models that are no GPT-2 and that users of this family have files of.

The names of a GPT-2 are checked one by one by the views; this is for one sentence instead of a list of hundreds.
"""

import re
from collections.abc import Iterable
from typing import NoReturn

from mindgpt.checkpoints.tensor_source import TensorSource
from mindgpt.config.errors import UserError

_MODELS = (  # (what only such a model has, what the model is); UER-py's names, then those of other libraries
    (r"embedding\.seg(ment)?(_embedding|\.)", "a BERT of UER-py: it has segment embeddings"),
    (r"target\.mlm[._]|target\.(bert|albert|sp|nsp|bilm|clr|cls)[._]", "an encoder of UER-py, such as BERT"),
    (r"decoder\.transformer_decoder\.|tgt_embedding\.", "a T5, BART or other encoder-decoder of UER-py"),
    (r"encoder\.relative_pos_emb\.", "a T5 of UER-py: it has relative positions"),
    (r"encoder\.transformer\.\d+\.feed_forward\.linear_gate\.", "a LLaMA or T5 1.1: its feed-forward is gated"),
    (r"encoder\.(rnn|gatedcnn|forward_lstm|conv)", "a recurrent or convolutional model of UER-py"),
    (r"embedding\.(patch|speech|dual|sinusoidalpos|word_patch)\.", "a model of UER-py with other embeddings"),
    (r"embedding\.layer_norm\.", "a model of UER-py with a layer norm after the embeddings, as BERT and GPT have"),
    (r"encoder\.linear\.", "a model of UER-py with factorised embeddings, such as ALBERT"),
    (r"encoder\.transformer\.(self_attn|feed_forward|layer_norm)", "a model of UER-py whose layers share weights"),
    (r"target\.(lm\.)?output_layer\.bias", "a language model of UER-py whose head has a bias (has_lmtarget_bias)"),
    (r"output_layers?(_[12])?\.", "a model that UER-py fine-tuned for classification, with a head of its own"),
    (r"(model\.)?language_model\.(embedding\.)?tokentype_embeddings\.", "a BERT of Megatron: it has token types"),
    (r"(model\.)?language_model\..*\.mlp\.(deepspeed_moe|experts?|moe|router)\.", "a GPT-3 with a mixture of experts"),
    (r"(bert\.)?embeddings\.(word_embeddings|token_type_embeddings)\.", "a BERT or one of its relatives"),
    (r"(bert\.)?encoder\.layer\.\d+\.attention\.", "a BERT or one of its relatives"),
    (r"bert/(embeddings|encoder)/", "a BERT or one of its relatives"),  # TensorFlow's names
    (r"shared\.weight|(encoder|decoder)\.block\.\d+\.layer\.", "a T5"),
)
_PATTERNS = [(re.compile(rf"(?:module\.)?(?:{pattern})"), what) for pattern, what in _MODELS]


def other_model(names: Iterable[str]) -> str | None:
    """What a model with weights of these names is, and the name that tells it; None: it may be a GPT-2."""
    names = list(names)
    for pattern, what in _PATTERNS:
        if found := next((name for name in names if pattern.match(name)), None):
            return f"{what} ({found})"
    return None


def refuse_other_model(source: TensorSource) -> NoReturn:
    """Raise a `UserError` that says what the model is."""
    raise UserError(f"{source.path}: not the weights of a GPT-2, but of {other_model(source.entries)}.")
