"""Article completion with the Chinese GPT2_ML, as bert4keras's basic_language_model_gpt2_ml.py does it.

    python examples/gpt2_ml/article_completion.py FOLDER [PROMPT ...]

FOLDER holds the model in mindgpt's format: config.json, weights and vocab.txt. Other Chinese models whose prompts have
no special tokens around them work, too. Every run samples other texts.
"""

import sys

import mindgpt

folder = sys.argv[1] if len(sys.argv) > 1 else "gpt2_ml/"
prompts = sys.argv[2:] or ["今天天气不错"]

# lower case, no [CLS] and [SEP] around a text, and texts written as bert4keras writes them
tokenizer = mindgpt.load_tokenizer(folder, rules="bert4keras")

# an article has 128 to 256 new tokens, and ends with the first 。 from the 128th on
generate = mindgpt.pipeline(
    "text-generation", model=folder, tokenizer=tokenizer, do_sample=True, end_token="。", min_length=128, max_length=256
)


def article_completion(text: str, n: int = 1, top_k: int = 5) -> list[str]:
    """`n` articles that begin with `text`; each token is sampled among the `top_k` likeliest."""
    return [article["generated_text"] for article in generate(text, num_return_sequences=n, top_k=top_k)]


for prompt in prompts:
    print(article_completion(prompt))
