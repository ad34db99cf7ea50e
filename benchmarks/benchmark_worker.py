"""One side of the benchmark, in a process of its own: `benchmark.py` starts it and says when to work.

It reads one JSON request a line from stdin and answers each with one JSON line on stdout. Between requests it is
blocked on the pipe and its thread pools sleep, so that the other side has the cores to itself. Libraries are imported
inside the sides: a process that measures PyTorch must not load mindgpt, which sets OMP_WAIT_POLICY for its process.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np

LEARNING_RATE = 1e-4
MAX_GRAD_NORM = 1.0
Step = Callable[[], float]
"""Runs one step to its end, and returns a number that depends on all of it."""


def token_rows(batch: int, length: int, vocab_size: int) -> np.ndarray:
    """(batch, length) int32: the same random ids on both sides."""
    return np.random.default_rng(0).integers(0, vocab_size, (batch, length), dtype=np.int32)


def matrices(rows: int, width: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """x (rows, width) and a weight stored [out, width], the friendliest layout to both libraries, float32."""
    generator = np.random.default_rng(0)
    return (generator.standard_normal(shape, dtype=np.float32) for shape in ((rows, width), (out, width)))


class Side:
    """What both sides do alike."""

    options: dict

    def decode(self, batch: int) -> Step:
        """Read a batch of prompts and go on with them."""
        return self.generation(batch, self.options["prompt_length"], self.options["new_tokens"])

    def prefill(self, length: int) -> Step:
        """Read one prompt, up to its first new token."""
        return self.generation(1, length, 1)


class MindGPT(Side):
    """Our side: the product's own train step, perplexity cell and generator."""

    def __init__(self, config: dict, options: dict):
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed
        import mindgpt
        from mindgpt.config.execution_sections import ContextSection
        from mindgpt.runtime.device import prepare_device

        prepare_device(ContextSection(device_target="CPU"), options["scratch"], seed=0)  # as of a YAML that names none
        self.config = mindgpt.GPT2Config(**config)
        self.options = options

    def model(self):
        import mindgpt

        return mindgpt.GPT2LMHeadModel(self.config)

    def batch(self) -> tuple:
        """Rows of seq_length + 1 ids and their mask: the network sees and predicts seq_length tokens of each."""
        import mindspore as ms

        rows = token_rows(self.options["batch_size"], self.options["seq_length"] + 1, self.config.vocab_size)
        return ms.Tensor(rows), ms.Tensor(np.ones_like(rows))

    def train(self) -> Step:
        return self.train_step(self.model())

    def lora(self) -> Step:
        """A training step of the LoRA in configs/gpt2/finetune_gpt2_small_lora_fp16.yaml."""
        from mindgpt.config.model_sections import PetSection
        from mindgpt.pet.lora import add_lora

        model = self.model()
        rate = self.config.hidden_dropout_rate
        add_lora(model, PetSection(lora_rank=64, lora_alpha=128, lora_dropout=rate))  # query and value
        return self.train_step(model)

    def train_step(self, model) -> Step:
        from mindgpt.config.optimizer_sections import LRScheduleSection, OptimizerSection
        from mindgpt.config.training_sections import ScaleSenseSection
        from mindgpt.train.optimizers import build_optimizer
        from mindgpt.train.schedules import LearningRateTable, learning_rates
        from mindgpt.train.step import TrainStep

        model.set_train()
        schedule = LearningRateTable(learning_rates(LRScheduleSection(learning_rate=LEARNING_RATE), 1))
        optimizer = build_optimizer(OptimizerSection(), model.trainable_params(), schedule)
        step = TrainStep(model, optimizer, ScaleSenseSection(), MAX_GRAD_NORM).set_train()
        batch = self.batch()
        return lambda: float(step(*batch)[0].asnumpy())

    def eval(self) -> Step:
        from mindgpt.evaluation.perplexity import PerplexityCell

        cell = PerplexityCell(self.model()).set_train(False)
        batch = self.batch()

        def step() -> float:
            total, count = cell(*batch)
            return float(total.asnumpy() / count.asnumpy())

        return step

    def generation(self, batch: int, length: int, new_tokens: int) -> Step:
        from mindgpt.generation.engine import Generator
        from mindgpt.generation.settings import GenerationSettings

        generator = Generator(self.model().set_train(False))
        settings = GenerationSettings(max_new_tokens=new_tokens, eos_token_id=None)
        prompts = token_rows(batch, length, self.config.vocab_size).tolist()
        return lambda: float(sum(map(len, generator.generate(prompts, settings))))

    def matmul(self, width: int, out: int) -> Step:
        import mindspore as ms

        class Product(ms.nn.Cell):
            def __init__(self):
                super().__init__()
                self.matmul = ms.ops.MatMul(transpose_b=True)

            def construct(self, x, weight):
                return self.matmul(x, weight)[0, 0]  # one number, so that no copy of the product is timed

        rows = self.options["batch_size"] * self.options["seq_length"]
        x, weight = map(ms.Tensor, matrices(rows, width, out))
        product = Product()
        return lambda: float(product(x, weight).asnumpy())


class Transformers(Side):
    """The peer: Hugging Face transformers on PyTorch, eager attention, float32 or bfloat16 autocast."""

    def __init__(self, config: dict, options: dict):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        torch.manual_seed(0)
        self.config = transformers.GPT2Config(**config, attn_implementation="eager")
        self.options = options
        self.precision = torch.autocast("cpu", dtype=torch.bfloat16) if options["bf16"] else nullcontext()

    def model(self):
        import transformers

        return transformers.GPT2LMHeadModel(self.config)

    def loss(self, model) -> Callable:
        """Its loss over seq_length predictions of as many tokens seen: what ours does, and no token more.

        The labels of `GPT2LMHeadModel.forward` would predict one less of the tokens it sees, so the loss that it
        computes with them (`torch.nn.functional.cross_entropy` of float32 logits) is called here.
        """
        import torch

        rows = token_rows(self.options["batch_size"], self.options["seq_length"] + 1, self.config.vocab_size)
        ids = torch.from_numpy(rows).long()
        seen, targets, mask = ids[:, :-1].contiguous(), ids[:, 1:].reshape(-1), torch.ones_like(ids[:, :-1])

        def loss():
            with self.precision:
                logits = model(seen, attention_mask=mask, use_cache=False).logits
            return torch.nn.functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets)

        return loss

    def train(self) -> Step:
        import torch

        model = self.model().train()
        loss_of_batch = self.loss(model)
        fused = True if self.options["peer_adamw"] == "fused" else None
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=fused
        )

        def step() -> float:
            optimizer.zero_grad()
            loss = loss_of_batch()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            return loss.item()

        return step

    def eval(self) -> Step:
        import torch

        loss_of_batch = self.loss(self.model().eval())

        def step() -> float:
            with torch.inference_mode():
                return loss_of_batch().item()

        return step

    def generation(self, batch: int, length: int, new_tokens: int) -> Step:
        import torch

        model = self.model().eval()
        model.generation_config.eos_token_id = None  # every row runs to its full length, as ours does
        prompts = torch.from_numpy(token_rows(batch, length, self.config.vocab_size)).long()
        mask = torch.ones_like(prompts)
        options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}

        def step() -> float:
            rows = model.generate(prompts, attention_mask=mask, **options)
            return float(rows[:, length:].numel())

        return step

    def matmul(self, width: int, out: int) -> Step:
        import torch

        rows = self.options["batch_size"] * self.options["seq_length"]
        x, weight = map(torch.from_numpy, matrices(rows, width, out))
        return lambda: (x @ weight.t())[0, 0].item()


SIDES = {"mindgpt": MindGPT, "transformers": Transformers}


def answer(side: MindGPT | Transformers, steps: dict[str, Step], request: dict) -> dict:
    """Do what a request asks: prepare a task (build, and run its first step), or measure some steps of it."""
    task = request["task"]
    if task not in steps:
        name, *sizes = task.split(":")
        steps[task] = getattr(side, name)(*map(int, sizes))
        steps[task]()
    seconds, result, before = [], None, others_cpu_seconds()
    began = time.perf_counter()
    for _ in range(request["steps"]):
        start = time.perf_counter()
        result = steps[task]()
        seconds.append(time.perf_counter() - start)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return {
        "seconds": seconds,
        "result": result,
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "others": max(0.0, (others_cpu_seconds() - before) / (time.perf_counter() - began)),
    }


def others_cpu_seconds() -> float:
    """CPU time that other processes of this machine have used so far; 0 where the system does not tell (not Linux)."""
    if not os.path.exists("/proc/stat"):
        return 0.0
    with open("/proc/stat") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def main() -> None:
    """Serve requests until stdin ends. The one argument is the name of the side; the first line says which network."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get between the replies
    hello = json.loads(sys.stdin.readline())
    side = SIDES[sys.argv[1]](hello["config"], hello["options"])
    steps: dict[str, Step] = {}
    for line in sys.stdin:
        print(json.dumps(answer(side, steps, json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
