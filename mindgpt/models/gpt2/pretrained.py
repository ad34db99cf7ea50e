"""What the networks with a head have in common: they come from a folder of weights, and go into one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from mindspore import Tensor, nn

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.locations import CHECKPOINT_NAME, find_weights, preset_of
from mindgpt.checkpoints.resizing import fit_to
from mindgpt.checkpoints.weights import load_weights, open_weights, save_checkpoint
from mindgpt.config.errors import UserError
from mindgpt.config.paths import expanded_path
from mindgpt.runtime.ranks import say


class PretrainedCell(nn.Cell):
    """A network that has a `config` and is built from one."""

    may_be_new: ClassVar[tuple[str, ...]] = ()
    """The parameters that pretrained weights may lack, as regular expressions; see `load_weights`."""

    leaves_out: ClassVar[Mapping[str, str]] = {}
    """The names of pretrained weights that this network has no use for, each with what it is; see `load_weights`."""

    unrounded: Mapping[str, Tensor] = MappingProxyType({})
    """Float32 values, by name, of weights that were loaded into half precision to be trained; see `load_weights`."""

    @classmethod
    def from_pretrained(cls, path: str | Path, *, resize_embeddings: bool = False, **changes):
        """Build a model and load its weights, strictly. A classifier takes the weights of a language model too: its
        head is then new and random, and a line says so.

        Args:
            path: a Hugging Face folder or file, a folder of `save_pretrained`, a `.ckpt` beside its config.json, the
                folder `checkpoint` of a run (the newest is used), a `.bin` of UER-py or TencentPretrain, a folder of
                DeepSpeed's or of ModelScope's GPT-3, a GPT2_ML's TensorFlow checkpoint or folder of its PyTorch port,
                or the name of a model that MindFormers downloaded ("gpt2").
            resize_embeddings: let `changes` ask for more or fewer positions and for more tokens;
                `checkpoints/resizing.py` tells what the new rows are.
            changes: settings of the config to replace, such as `compute_dtype="float16"`.

        Raises:
            UserError: no weights or no config there, or they do not fit; all names that do not fit are listed.
        """
        path = expanded_path(path)
        weights = open_weights(find_weights(path))
        if weights.config is None and (preset := preset_of(path)):
            say(f"{path}: no config.json lies with the weights; the preset {path} is used")
            weights = replace(weights, config=preset)
        if weights.config is None and weights.without_heads is not None:
            if "num_heads" not in {GPT2Config.other_names.get(key, key) for key in changes}:
                raise UserError(
                    f"{path}: weights do not tell the number of heads, and no config lies with them. Say it: "
                    f"{cls.__name__}.from_pretrained({str(path)!r}, num_heads=...)"
                )
            weights = replace(weights, config=weights.without_heads)
        if weights.config is None:
            raise UserError(
                f"{path}: there is no config.json beside the weights, so the network is unknown. Put one there, or "
                f"build {cls.__name__}(GPT2Config(...)) and load the weights with mindspore.load_checkpoint."
            )
        if changes.get("num_labels", weights.config.num_labels) != weights.config.num_labels:
            changes.setdefault("label_names", None)  # the names there are of other labels
        for note in weights.notes:
            say(f"note: {note}")
        config, weights = fit_to(weights, changes, resize_embeddings)
        model = cls(config)
        new = load_weights(model, weights, cls.may_be_new, cls.leaves_out).not_in_file
        if new:
            say(f"{path}: {', '.join(new)} is not there: it is new, and random until it is trained")
        model.set_train(False)
        return model

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many values the parameters hold, all of them or those that are trained; a tied head counts once.

        `exclude_embeddings` leaves out the tables of tokens and positions.
        """
        parameters = self.trainable_params() if only_trainable else self.get_parameters()
        return sum(
            parameter.size
            for parameter in parameters
            if not (exclude_embeddings and parameter.name.endswith("embedding_table"))
        )

    def __call__(self, *inputs: Any, input_mask: Any = None, **named: Any) -> Any:
        """Call `construct`. `input_mask` is MindFormers' name of `attention_mask`.

        Raises:
            UserError: both are given.
        """
        if input_mask is not None:
            if len(inputs) > 1 or named.get("attention_mask") is not None:
                raise UserError("input_mask and attention_mask mean the same; give one of them")
            named["attention_mask"] = input_mask
        return super().__call__(*inputs, **named)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.ckpt` into `folder`, whole or not at all; `from_pretrained` opens it."""
        folder = expanded_path(folder)
        save_checkpoint(folder / CHECKPOINT_NAME, self)
        self.config.save_pretrained(folder, architecture=type(self).__name__)
