"""Measure mindgpt against Hugging Face transformers on PyTorch, side by side on this machine's CPU.

    python benchmarks/benchmark.py        # GPT-2 small: training, evaluation, decoding, start, LoRA
    python benchmarks/benchmark.py --what train eval --batch_size 8 --seq_length 128 --json result.json
    python benchmarks/benchmark.py --num_layers 2 --hidden_size 64 --num_heads 2 --vocab_size 512      # a quick try

Both sides have random weights, the same ids, float32, the same dropout, eager attention, AdamW, and gradients clipped
to a global norm of 1. A training or evaluation step sees and predicts batch_size x seq_length tokens. Each side lives
in a process of its own, and they take turns: ours, the peer, ours, the peer. A time is the median of all steps; a ratio
is the peer's time by ours, so above 1 mindgpt is faster. "startup" is from the start of a process to the end of its
first training step, compilation included, and is measured once; "startup again" is the same when mindgpt finds what the
first one kept (`$MINDGPT_CACHE`, here an empty folder at first). "lora" compares two training steps of ours, of LoRA
and of all weights, in tokens/s and peak memory. "others" is how many cores programs that have nothing to do with the
benchmark kept busy meanwhile: what is measured while that is far from 0 means little. The warm-up is long because
MindSpore's CPU kernels tune themselves in their first 20 runs or so, and start on one core.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from tqdm import tqdm

from mindgpt.checkpoints.gpt2_config import PRESETS, GPT2Config
from mindgpt.config.arguments import CheckedParser, file_argument, path_argument
from mindgpt.config.errors import UserError, run_program

WORKER = Path(__file__).with_name("benchmark_worker.py")
SIDES = ("mindgpt", "transformers")
TUNING = {"train": "all weights", "lora": "LoRA, rank 64 on query and value"}  # the worker's task -> what it tunes
LIBRARIES = {"mindgpt": "mindspore", "transformers": "torch"}  # what multiplies matrices on each side


class Worker:
    """A side of the benchmark, in its own process."""

    def __init__(self, side: str, config: dict, options: dict, variables: dict[str, str] | None = None):
        environment = os.environ | (variables or {})
        if side != "mindgpt":
            environment.pop("OMP_WAIT_POLICY", None)  # mindgpt's own choice; PyTorch is a little faster without
        self.side = side
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=options["scratch"],
        )
        self.send({"config": config, "options": options})

    def send(self, message: dict) -> None:
        try:
            print(json.dumps(message), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            self.fail("its start")

    def run(self, task: str, steps: int) -> dict:
        """Have `steps` steps of a task measured; 0 only prepares it. Returns the worker's answer."""
        self.send({"task": task, "steps": steps})
        line = self.process.stdout.readline()
        if not line:
            self.fail(task)
        return json.loads(line)

    def fail(self, task: str) -> None:
        status = self.process.wait()
        reason = "; killed from outside, most often for want of memory" if status == -9 else ""
        raise UserError(f"The {self.side} process ended with status {status} during {task}{reason}. See above for why.")

    def end(self) -> None:
        """Let it end by itself, as a run does that has nothing left to do: that is when mindgpt keeps its kernels."""
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # then it hangs, and `stop` will end it
            self.process.wait(timeout=60)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Benchmark:
    """Runs tasks on both sides in turns and keeps what was measured."""

    def __init__(self, arguments: argparse.Namespace, config: GPT2Config, options: dict):
        self.arguments = arguments
        self.options = options
        settings = config.model_dump()
        self.configs = {"mindgpt": settings, "transformers": config.to_hf_dict()}
        del self.configs["transformers"]["mindgpt"]
        self.answers: dict[str, dict[str, list[dict]]] = {}  # task -> side -> answers
        self.starts: dict[str, dict] = {}  # "transformers", "first", "again" (of mindgpt) -> answer

    def run(self, groups: list[list[str]]) -> None:
        """Measure each group of tasks in a fresh pair of processes, so that their peak memory is their own."""
        turns = sum(len(tasks) for tasks in groups) * (self.arguments.rounds + 1) * len(SIDES)
        with tqdm(total=turns, desc="turns", disable=None) as progress:
            for tasks in groups:
                self._run_group(tasks, progress)

    def _run_group(self, tasks: list[str], progress: tqdm) -> None:
        workers: list[Worker] = []
        try:
            for side in SIDES:
                workers.append(Worker(side, self.configs[side], self.options))
            for task in tasks:
                for worker in workers:
                    worker.run(task, self.arguments.warmup if task in ("train", "eval") else 2)
                    progress.update()
                for _ in range(self.arguments.rounds):
                    for worker in workers:
                        answer = worker.run(task, self.arguments.steps)
                        self.answers.setdefault(task, {}).setdefault(worker.side, []).append(answer)
                        progress.update()
        finally:
            for worker in workers:
                worker.stop()

    def measure_start(self) -> None:
        """From the start of a process to the end of its first training step: the peer's, ours, and ours once more,
        which finds what the one before has kept."""
        with tempfile.TemporaryDirectory() as cache:
            for name, side in (("transformers", "transformers"), ("first", "mindgpt"), ("again", "mindgpt")):
                with tempfile.TemporaryDirectory() as scratch:  # of its own, as every run has its own output folder
                    options = self.options | {"scratch": scratch}
                    worker = Worker(side, self.configs[side], options, {"MINDGPT_CACHE": cache})
                    try:
                        worker.run("train", 0)
                        self.starts[name] = {"median": time.perf_counter() - worker.started}
                        worker.end()
                    finally:
                        worker.stop()

    def measure_lora(self) -> dict[str, dict]:
        """Training steps of all weights and of LoRA, ours alone: two processes that take turns."""
        workers: dict[str, Worker] = {}
        answers: dict[str, list[dict]] = {task: [] for task in TUNING}
        try:
            for task in TUNING:
                workers[task] = Worker("mindgpt", self.configs["mindgpt"], self.options)
                workers[task].run(task, self.arguments.warmup)
            for _ in tqdm(range(self.arguments.rounds), desc="LoRA", disable=None):
                for task, worker in workers.items():
                    answers[task].append(worker.run(task, self.arguments.steps))
        finally:
            for worker in workers.values():
                worker.stop()
        tokens = self.arguments.batch_size * self.arguments.seq_length
        results = {task: summary(measured) for task, measured in answers.items()}
        return {task: values | {"tokens_per_second": tokens / values["median"]} for task, values in results.items()}

    def measure_bf16(self, task: str) -> dict:
        """The peer alone, under bfloat16 autocast, for information."""
        worker = Worker("transformers", self.configs["transformers"], self.options | {"bf16": True})
        try:
            worker.run(task, 2)
            return summary([worker.run(task, self.arguments.steps)])
        finally:
            worker.stop()


def summary(answers: list[dict]) -> dict:
    """A task on one side: its times, last result and peak memory, and how many cores other programs kept busy."""
    seconds = [second for answer in answers for second in answer["seconds"]]
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "seconds": seconds,
        "result": answers[-1]["result"],
        "peak_memory": answers[-1]["peak_memory"],
        "others": statistics.mean(answer["others"] for answer in answers),
    }


def matmul_shapes(config: GPT2Config) -> dict[tuple[int, int], int]:
    """(width in, width out) of every product with a weight -> how often it occurs in one forward pass."""
    hidden, ffn, layers = config.hidden_size, config.ffn_hidden_size, config.num_layers
    return {(hidden, hidden): 4 * layers, (hidden, ffn): layers, (ffn, hidden): layers, (hidden, config.vocab_size): 1}


def matmul_report(benchmark: Benchmark, config: GPT2Config, rows: int) -> dict:
    """How fast each library multiplies, and how long the model's weight products alone take it.

    The backward pass of a product y = x W is two more of as many operations, so a training step takes three times those
    of the forward pass; they are counted at the speed of the forward product.
    """
    shapes, forward = [], dict.fromkeys(SIDES, 0.0)
    for (width, out), count in matmul_shapes(config).items():
        answers = benchmark.answers[f"matmul:{width}:{out}"]
        medians = {side: summary(answers[side])["median"] for side in SIDES}
        speeds = {LIBRARIES[side]: 2 * rows * width * out / medians[side] / 1e9 for side in SIDES}
        shapes.append({"rows": rows, "in": width, "out": out, "gflops": speeds})
        forward = {side: forward[side] + count * medians[side] for side in SIDES}
    train = {side: 3 * seconds for side, seconds in forward.items()}
    return {"shapes": shapes, "seconds_per_step": {"train": train, "eval": forward}}


def machine() -> dict:
    """The CPU, the cores this process may use, the versions, and how busy the machine was before we began."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: importlib.metadata.version(name) for name in ("mindspore", "torch", "transformers")}
    return {"cpu": model, "cores": cores, "load_average": os.getloadavg()[0], "versions": versions}


def report(benchmark: Benchmark, config: GPT2Config, host: dict) -> dict:
    """Everything measured, as the JSON file holds it."""
    arguments = benchmark.arguments
    tokens = {"train": arguments.batch_size * arguments.seq_length, "eval": arguments.batch_size * arguments.seq_length}
    tokens |= {f"decode:{batch}": batch * arguments.new_tokens for batch in arguments.decode_batch_sizes}
    tokens |= {f"prefill:{arguments.prefill_length}": arguments.prefill_length}
    rows = []
    for task, answers in benchmark.answers.items():
        if task.startswith("matmul"):
            continue
        sides = {side: summary(answers[side]) for side in SIDES}
        for values in sides.values():
            values["tokens_per_second"] = tokens[task] / values["median"]
        rows.append({"task": task, **sides, "ratio": sides["transformers"]["median"] / sides["mindgpt"]["median"]})
    if "startup" in arguments.what:
        peer = benchmark.starts["transformers"]
        for task, name in (("startup", "first"), ("startup again", "again")):
            ours = benchmark.starts[name]
            rows.append({"task": task, "mindgpt": ours, "transformers": peer, "ratio": peer["median"] / ours["median"]})
    if arguments.bf16:
        tasks = [task for task in ("train", "eval") if task in arguments.what]
        bf16 = {task: benchmark.measure_bf16(task) for task in tasks}
    settings = vars(arguments) | {"json": None}
    result = {"settings": settings, "machine": host, "results": rows}
    if "lora" in arguments.what:
        result["tuning"] = benchmark.measure_lora()
    if benchmark.answers:
        result["matmul"] = matmul_report(benchmark, config, arguments.batch_size * arguments.seq_length)
    return result | ({"transformers_bf16": bf16} if arguments.bf16 else {})


def table(result: dict, config: GPT2Config) -> str:
    """The report for the person."""
    host, settings = result["machine"], result["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    lines = [
        f"{host['cpu']}, {host['cores']} cores, load average {host['load_average']:.2f} at the start; {versions}",
        f"{config.num_layers} layers, hidden {config.hidden_size}, vocabulary {config.vocab_size}: "
        f"{config.num_parameters() / 1e6:.1f}M parameters, float32, batch {settings['batch_size']} x "
        f"{settings['seq_length']}, dropout {settings['dropout']:g}, {settings['rounds']} rounds of "
        f"{settings['steps']} steps",
    ]
    if result["results"]:
        header = f"{'median seconds':<28}{'mindgpt':>14}{'transformers':>14}{'ratio':>8}"
        lines += ["", header + f"{'tokens/s':>18}{'peak GiB':>14}{'others':>12}"]
    for row in result["results"]:
        ours, peer = row["mindgpt"], row["transformers"]
        line = f"{row['task']:<28}{ours['median']:>14.4g}{peer['median']:>14.4g}{row['ratio']:>8.2f}"
        if "tokens_per_second" in ours:
            line += f"{ours['tokens_per_second']:>9.0f}{peer['tokens_per_second']:>9.0f}"
            line += f"{ours['peak_memory'] / 2**30:>7.2f}{peer['peak_memory'] / 2**30:>7.2f}"
            line += f"{ours['others']:>6.2f}{peer['others']:>6.2f}"
        lines.append(line)
    for task, values in result.get("transformers_bf16", {}).items():
        lines.append(f"{task + ', bfloat16 autocast':<28}{'':>14}{values['median']:>14.4g}")
    if "tuning" in result:
        lines += tuning_table(result["tuning"])
    if "matmul" not in result:
        return "\n".join(lines)
    lines += ["", f"{'matmul, float32 GFLOP/s':<28}{'mindspore':>14}{'torch':>14}{'ratio':>8}"]
    for shape in result["matmul"]["shapes"]:
        ours, peer = shape["gflops"]["mindspore"], shape["gflops"]["torch"]
        name = f"{shape['rows']} x {shape['in']} -> {shape['out']}"
        lines.append(f"{name:<28}{ours:>14.0f}{peer:>14.0f}{ours / peer:>8.2f}")
    for task, seconds in result["matmul"]["seconds_per_step"].items():
        ours, peer = seconds["mindgpt"], seconds["transformers"]
        lines.append(f"{task + ' step, these alone: s':<28}{ours:>14.4g}{peer:>14.4g}{peer / ours:>8.2f}")
    return "\n".join(lines)


def tuning_table(tuning: dict[str, dict]) -> list[str]:
    """Lines that compare LoRA with training all weights; a ratio above 1 is in favour of LoRA."""
    lines = ["", f"{'mindgpt, training step of':<36}{'median s':>12}{'tokens/s':>12}{'peak GiB':>12}{'others':>8}"]
    for task, name in TUNING.items():
        values = tuning[task]
        lines.append(
            f"{name:<36}{values['median']:>12.4g}{values['tokens_per_second']:>12.0f}"
            f"{values['peak_memory'] / 2**30:>12.2f}{values['others']:>8.2f}"
        )
    full, lora = (tuning[task] for task in TUNING)
    speed, memory = full["median"] / lora["median"], full["peak_memory"] / lora["peak_memory"]
    return [*lines, f"{'LoRA against all weights':<36}{'':>12}{speed:>11.2f}x{memory:>11.2f}x"]


def at_least(lowest: int):
    """An argparse type: an integer that is not below `lowest`."""

    def integer(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {lowest}, not {text!r}")
        return int(text)

    return integer


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CheckedParser.documented(__doc__)
    count, add = at_least(1), parser.add_argument
    tasks = ("train", "eval", "decode", "prefill", "startup", "lora")
    add("--what", nargs="+", choices=tasks, default=list(tasks), help="what to measure (default: everything)")
    add(
        "--model",
        type=path_argument,
        default="gpt2",
        help=f"{', '.join(PRESETS)}, or a folder with config.json (default: %(default)s)",
    )
    for name in ("num_layers", "hidden_size", "num_heads", "vocab_size"):
        add(f"--{name}", type=count, metavar="N", help="in place of the model's own")
    add("--batch_size", type=count, default=4, metavar="N", help="rows of a step (%(default)s)")
    add("--seq_length", type=count, default=256, metavar="N", help="tokens seen and predicted in a row (%(default)s)")
    add("--dropout", type=float, default=0.1, metavar="P", help="probability, in training (%(default)s)")
    add("--decode_batch_sizes", type=count, nargs="+", default=[1, 8], metavar="N", help="prompts at a time (1 8)")
    add("--prompt_length", type=count, default=32, metavar="N", help="tokens of a prompt (%(default)s)")
    add(
        "--prefill_length",
        type=count,
        default=512,
        metavar="N",
        help="tokens of the prompt to read at once (%(default)s)",
    )
    add("--new_tokens", type=count, default=64, metavar="N", help="tokens to generate for each prompt (%(default)s)")
    add("--steps", type=count, default=3, metavar="N", help="steps in a turn (%(default)s)")
    add(
        "--warmup",
        type=at_least(0),
        default=20,
        metavar="N",
        help="steps before the first turn, not kept (%(default)s)",
    )
    add("--rounds", type=count, default=4, metavar="N", help="turns of each side (%(default)s)")
    add("--peer_adamw", choices=("default", "fused"), default="default", help="torch.optim.AdamW as it comes or fused")
    add("--bf16", action="store_true", help="also time the peer under bfloat16 autocast, alone")
    add("--json", type=file_argument, metavar="FILE", help="also write everything measured to FILE")
    return parser.parse_args(argv)


def check(arguments: argparse.Namespace) -> GPT2Config:
    """The network to measure; refuses what cannot be measured before anything is started."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"The peer needs {' and '.join(missing)}, of the extra `test`: pip install 'mindgpt[test]'")
    if arguments.json and not arguments.json.resolve().parent.is_dir():
        raise UserError(f"--json {arguments.json}: there is no folder {arguments.json.parent}. Make it first.")
    sizes = ("num_layers", "hidden_size", "num_heads", "vocab_size")
    changes = {name: getattr(arguments, name) for name in sizes if getattr(arguments, name) is not None}
    dropouts = ("embedding_dropout_rate", "hidden_dropout_rate", "attention_dropout_rate")
    changes |= dict.fromkeys(dropouts, arguments.dropout)
    config = GPT2Config.from_pretrained(arguments.model, **changes)
    positions = config.max_position_embeddings
    lengths = {"--seq_length": arguments.seq_length}
    lengths["--prefill_length"] = arguments.prefill_length + 1 if "prefill" in arguments.what else 0
    lengths["--prompt_length and --new_tokens"] = arguments.prompt_length + arguments.new_tokens
    for flag, length in lengths.items():
        if length > positions:
            raise UserError(f"{flag}: {length} tokens, but the position table of {arguments.model} holds {positions}.")
    return config


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    config = check(arguments)
    host = machine()
    if host["load_average"] > 0.3 * host["cores"]:
        print(
            f"warning: the load average is {host['load_average']:.1f} on {host['cores']} cores; other programs are "
            "running and will distort what is measured",
            file=sys.stderr,
        )
    groups = [[task] for task in ("train", "eval") if task in arguments.what]
    if "decode" in arguments.what:
        groups.append([f"decode:{batch}" for batch in dict.fromkeys(arguments.decode_batch_sizes)])
    if "prefill" in arguments.what:
        groups.append([f"prefill:{arguments.prefill_length}"])
    if arguments.what != ["lora"]:  # which needs no peer
        groups = groups or [[]]
        groups[0] += [f"matmul:{width}:{out}" for width, out in matmul_shapes(config)]
    with tempfile.TemporaryDirectory() as scratch:
        names = ("batch_size", "seq_length", "prompt_length", "new_tokens", "peer_adamw", "bf16")
        options = {name: getattr(arguments, name) for name in names} | {"scratch": scratch, "bf16": False}
        benchmark = Benchmark(arguments, config, options)
        if "startup" in arguments.what:
            benchmark.measure_start()
        benchmark.run(groups)
        result = report(benchmark, config, host)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2, default=str) + "\n")
    print(table(result, config))


if __name__ == "__main__":
    run_program(main)
