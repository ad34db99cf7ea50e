"""Vocabularies of WordPiece tokenizers, written as files."""

import json

from hypothesis import strategies as st

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_vocab(folder, tokens, end="\n", **settings_files):
    """A folder with vocab.txt and the settings files of these contents."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_bytes(end.join([*tokens, ""]).encode())
    for name, content in settings_files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


TOY = [*SPECIAL, "hello", "world", "##ly", "天", "气", "今", "，", ".", ",", "!", "a", "b", "1", "##2", "[", "]", "sep"]

# A character of every kind that the rules tell apart, whether it is in the vocabulary below or not.
AWKWARD = list(
    "\0\t\n\r\x0b\x1f\x7f\x85\xa0\xad\u0378\u200b\u200d\u2028\u2029\u3000\ue000\ufeff\ufffd \U0002b820\U000f0000"
)
AWKWARD += list("aAbzßéÉİıΣσςΩДдא中文豈龥𠮷가각の。，“”‘’—…·（）①℃０Ａ😀👍🏽$+<=>^`|~#'\"-_.,!?12")
PARTS = [*AWKWARD, "[SEP]", "[MASK]", "[sep]", "[UNK", "##", "e\u0301", "ΑΣ", "ΑΣΑ", "Å", "ﬁ", "x" * 101, "x" * 201]
any_text = st.lists(
    st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), st.sampled_from(PARTS)), max_size=12
).map("".join)


def pieces(word, vocab, longest=200):
    """The tokens of a word: the longest at its beginning that the vocabulary has, and so on."""
    found, start = [], 0
    while start < len(word) <= longest:
        ends = (end for end in range(len(word), start, -1) if "##" * (start > 0) + word[start:end] in vocab)
        end = next(ends, None)
        if end is None:
            return ["[UNK]"]
        found.append("##" * (start > 0) + word[start:end])
        start = end
    return found or ["[UNK]"]
