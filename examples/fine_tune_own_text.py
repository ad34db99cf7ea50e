"""Fine-tune GPT-2 on a text of your own, and let it write.

python examples/fine_tune_own_text.py gpt2-hf/ my_text.txt output/

gpt2-hf/ holds a GPT-2 small of Hugging Face with its tokenizer: config.json, model.safetensors, vocab.json, merges.txt.
Further words are options of the YAML, such as runner_config.epochs=10; another size has a YAML of its own.
"""

import subprocess
import sys
from pathlib import Path

if len(sys.argv) < 4:
    sys.exit(__doc__)
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
model, text, output, *options = sys.argv[1:]
program, length, rows = [sys.executable], 128, Path(output, "text.mindrecord")
words = ["--input_file", text, "--output_file", rows, "--max_length", str(length + 1), "--tokenizer_type", model]
if subprocess.call([*program, ROOT / "tools/dataset_preprocess/text_to_mindrecord.py", *words]):
    sys.exit(2)  # the line above says why
words = ["--config", ROOT / "configs/gpt2/finetune_gpt2_small_fp16.yaml", "--run_mode", "finetune"]
words += ["--train_dataset_dir", rows, "--load_checkpoint", model, "--output_dir", output]
short_rows = [f"model.model_config.seq_length={length}", "model.model_config.max_position_embeddings=1024"]
words += ["--options", *short_rows, *options]
if subprocess.call([*program, ROOT / "run_mindformer.py", *words]):
    sys.exit(2)

from mindgpt import pipeline  # noqa: E402

generate = pipeline("text-generation", model=f"{output}/checkpoint", tokenizer=model)
print(generate("tell me a fairy story", max_new_tokens=60, do_sample=True, top_k=50, top_p=0.95)[0]["generated_text"])
