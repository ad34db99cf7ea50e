"""Vocabularies of WordPiece tokenizers, written as files."""

import json

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_vocab(folder, tokens, end="\n", **settings_files):
    """A folder with vocab.txt and the settings files of these contents."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_bytes(end.join([*tokens, ""]).encode())
    for name, content in settings_files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


TOY = [*SPECIAL, "hello", "world", "##ly", "天", "气", "今", "，", ".", ",", "!", "a", "b", "1", "##2", "[", "]", "sep"]
