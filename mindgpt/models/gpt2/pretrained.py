"""What the networks with a head have in common: they come from a folder of weights, and go into one."""

from pathlib import Path
from typing import ClassVar

from mindspore import nn

from mindgpt.config.errors import UserError
from mindgpt.config.paths import expanded_path
from mindgpt.models.gpt2.gpt2_config import GENERATION_FILE, GPT2Config, generation_from_hf
from mindgpt.models.resizing import fit_to
from mindgpt.models.weights import CHECKPOINT_NAME, config_beside, load_weights, open_weights, save_checkpoint
from mindgpt.runtime.ranks import say


class PretrainedCell(nn.Cell):
    """A network that has a `config` and is built from one."""

    may_be_new: ClassVar[tuple[str, ...]] = ()
    """The parameters that pretrained weights may lack, as regular expressions; see `load_weights`."""

    @classmethod
    def from_pretrained(cls, path: str | Path, *, resize_embeddings: bool = False, **changes):
        """Build a model and load its weights, strictly. A classifier takes the weights of a language model too: its
        head is then new and random, and a line says so.

        Args:
            path: a Hugging Face folder or file, a folder of `save_pretrained`, or a `.ckpt` beside its config.json.
            resize_embeddings: let `changes` ask for more or fewer positions and for more tokens; `models/resizing.py`
                tells what the new rows are.
            changes: settings of the config to replace, such as `compute_dtype="float16"`.

        Raises:
            UserError: no weights or no config there, or they do not fit; all names that do not fit are listed.
        """
        path = expanded_path(path)
        weights = open_weights(path)
        if weights.config is None:
            raise UserError(
                f"{path}: there is no config.json beside the weights, so the network is unknown. Put one there, or "
                f"build {cls.__name__}(GPT2Config(...)) and load the weights with mindspore.load_checkpoint."
            )
        if changes.get("num_labels", weights.config.num_labels) != weights.config.num_labels:
            changes.setdefault("label_names", None)  # the names there are of other labels
        _say_what_is_not_read(config_beside(weights.source.path), weights.config)
        config, weights = fit_to(weights, changes, resize_embeddings)
        model = cls(config)
        new = load_weights(model, weights, may_be_missing=cls.may_be_new).not_in_file
        if new:
            say(f"{path}: {', '.join(new)} is not there: it is new, and random until it is trained")
        model.set_train(False)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.ckpt` into `folder`, whole or not at all; `from_pretrained` opens it."""
        folder = expanded_path(folder)
        save_checkpoint(folder / CHECKPOINT_NAME, self)
        self.config.save_pretrained(folder, architecture=type(self).__name__)


def _say_what_is_not_read(config_file: Path | None, config: GPT2Config) -> None:
    unread = generation_from_hf(config_file, config.vocab_size)[1] if config_file else []
    if unread:
        say(f"note: {config_file.with_name(GENERATION_FILE)}: mindgpt has no {', '.join(unread)}: left out")
