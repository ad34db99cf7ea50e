"""Article completion with the Chinese GPT2_ML, as bert4keras's basic_language_model_gpt2_ml.py does it.

    python examples/gpt2_ml/article_completion.py FOLDER [PROMPT ...]

FOLDER holds config.json, vocab.txt and the weights: TensorFlow's checkpoint as it was published, or what
convert_weight.py made of it. Other Chinese models whose prompts have no special tokens around them work, too. Every run
samples other texts.
"""

import argparse

import mindgpt
from mindgpt.config.errors import run_program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="gpt2_ml/")
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", default=["今天天气不错"])
    given = parser.parse_args()

    # lower case, no [CLS] and [SEP] around a text, and texts written as bert4keras writes them
    tokenizer = mindgpt.load_tokenizer(given.folder, rules="bert4keras")

    # an article has 128 to 256 new tokens, and ends with the first 。 from the 128th on
    generate = mindgpt.pipeline(
        "text-generation",
        model=given.folder,
        tokenizer=tokenizer,
        do_sample=True,
        end_token="。",
        min_length=128,
        max_length=256,
    )

    def article_completion(text: str, n: int = 1, top_k: int = 5) -> list[str]:
        """`n` articles that begin with `text`; each token is sampled among the `top_k` likeliest."""
        return [article["generated_text"] for article in generate(text, num_return_sequences=n, top_k=top_k)]

    for prompt in given.prompts:
        print(article_completion(prompt))


if __name__ == "__main__":
    run_program(main)  # a wrong folder is one line, without a traceback
