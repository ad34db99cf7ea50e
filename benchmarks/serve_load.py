"""Load on `mindgpt serve`: many clients for some minutes, and the throughput of 8 clients against one after another.

The texts of a set of requests are computed alone first, without a server. Then a server is started, and clients ask for
them in random order; some go away in the middle of a stream, some send nonsense. Each text has to be that of its single
run. Example: python benchmarks/serve_load.py --model gpt2-hf/ --clients 64 --minutes 5
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np

REPO = Path(__file__).resolve().parent.parent
TEXT = "the a rose sea of and is was in house 你好 light under old name not said we they river"
NONSENSE = (
    b"{",
    b"[]",
    b'{"prompt": 5}',
    b'{"prompt": "a", "frobnicate": 1}',
    b"\xff\xfe",
    b'{"prompt": "' + b"a" * 9000 + b'"}',
)


def make_requests(number: int, longest: int) -> list[dict]:
    """Requests of mixed lengths, half of them sampled."""
    choose = random.Random(0)
    made = []
    for place in range(number):
        words = choose.choices(TEXT.split(), k=round(2 ** choose.uniform(0, 7)))
        body = {"prompt": " ".join(words), "max_tokens": choose.randint(4, longest), "temperature": 0.0}
        made.append(body | ({"temperature": 1.0, "top_p": 0.95, "seed": place} if place % 2 else {}))
    return made


def single_runs(model: str, bodies: list[dict]) -> list[str]:
    """The text of each request, without a server."""
    from mindgpt.config.execution_sections import ContextSection
    from mindgpt.generation import generate_text
    from mindgpt.generation.pipeline import pipeline
    from mindgpt.io.user_cache import work_folder
    from mindgpt.runtime.device import prepare_device

    prepare_device(ContextSection(), work_folder())
    pipe = pipeline("text-generation", model=model)
    texts = []
    for body in bodies:
        settings = {"do_sample": body["temperature"] > 0, "seed": body.get("seed"), "top_p": body.get("top_p", 1.0)}
        settings = pipe.settings.changed(**settings, max_new_tokens=body["max_tokens"])
        texts += [one.text for one in generate_text(pipe.generator, pipe.tokenizer, [body["prompt"]], settings)]
    return texts


class Server:
    """A server of the model in a process of its own."""

    def __init__(self, model: str, options: list[str]):
        command = [sys.executable, "-m", "mindgpt.serving", "--model", model, "--port", "0", *options]
        environment = os.environ | {"PYTHONPATH": str(REPO)}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        for line in self.process.stdout:
            if found := re.search(r"served at (\S+);", line):
                self.url = found[1]
                return
        raise SystemExit("the server has not started")

    def megabytes(self) -> float:
        """Its resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024

    def stop(self) -> int:
        """Ends it. Returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Load:
    """Clients of a server, and what they saw."""

    def __init__(self, url: str, bodies: list[dict], texts: list[str]):
        self.url, self.bodies, self.texts = f"{url}/v1/completions", bodies, texts
        self.seen: Counter[str] = Counter()
        self.wrong: list[tuple[dict, str, str]] = []
        self.first_token: list[float] = []

    async def ask(self, client: httpx.AsyncClient, number: int, leave: bool = False) -> None:
        """One streamed request, checked."""
        began, text, ended = time.monotonic(), "", False
        body = self.bodies[number] | {"stream": True}
        async with client.stream("POST", self.url, json=body) as response:
            if response.status_code != 200:
                self.seen[f"status {response.status_code}"] += 1
                return
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line:
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        self.seen["error in a stream"] += 1
                        return
                    if not text:
                        self.first_token.append(time.monotonic() - began)
                    text += event["choices"][0]["text"]
                    if leave:
                        self.seen["left"] += 1
                        return
        if ended and text == self.texts[number]:
            self.seen["right"] += 1
        else:
            self.seen["wrong" if ended else "lost"] += 1
            self.wrong.append((body, self.texts[number], text))

    async def client(self, number: int, until: float) -> None:
        """One client: asks again and again."""
        choose = random.Random(number)
        async with httpx.AsyncClient(timeout=300) as client:
            while time.monotonic() < until:
                kind = choose.random()
                if kind < 0.1:
                    content = choose.choice(NONSENSE)
                    headers = {"Content-Type": "application/json"}
                    status = (await client.post(self.url, content=content, headers=headers)).status_code
                    self.seen["malformed, refused" if status == 400 else f"malformed, {status}"] += 1
                else:
                    await self.ask(client, choose.randrange(len(self.bodies)), leave=kind < 0.2)

    async def run(self, clients: int, seconds: float) -> None:
        """All clients at once."""
        until = time.monotonic() + seconds
        await asyncio.gather(*(self.client(number, until) for number in range(clients)))

    async def throughput(self, clients: int, requests: int, tokens: int) -> float:
        """New tokens in a second, of requests of one length by so many clients."""
        body = {"prompt": "the old house under the", "max_tokens": tokens, "ignore_eos": True, "seed": 1}
        limit = asyncio.Semaphore(clients)
        async with httpx.AsyncClient(timeout=600) as client:

            async def one() -> int:
                async with limit:
                    return (await client.post(self.url, json=body)).json()["usage"]["completion_tokens"]

            began = time.monotonic()
            counts = await asyncio.gather(*(one() for _ in range(requests)))
            return sum(counts) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="folder of a model and its tokenizer")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=5, help="0: throughput only")
    parser.add_argument("--longest", type=int, default=64, help="new tokens of a text at most")
    parser.add_argument("--requests", type=int, default=40, help="different ones")
    parser.add_argument("--max_batch", type=int, default=8)
    parser.add_argument("--throughput_tokens", type=int, default=0, help="new tokens of each; 0: no such measurement")
    given = parser.parse_args()
    bodies = make_requests(given.requests, given.longest)
    texts = single_runs(given.model, bodies) if given.minutes else []
    server = Server(given.model, ["--max_batch", str(given.max_batch), "--max_queue", str(given.clients)])
    load = Load(server.url, bodies, texts)
    try:
        if given.throughput_tokens:
            asyncio.run(load.throughput(8, 8, 8))
            alone = asyncio.run(load.throughput(1, 6, given.throughput_tokens))
            together = asyncio.run(load.throughput(8, 24, given.throughput_tokens))
            print(f"one after another {alone:.1f} tokens/s, 8 clients {together:.1f}: {together / alone:.2f} times")
        if given.minutes:
            asyncio.run(load.run(given.clients, 15))
            before = server.megabytes()
            load.first_token.clear()
            asyncio.run(load.run(given.clients, given.minutes * 60))
            print(f"{given.clients} clients for {given.minutes:g} minutes: {dict(load.seen)}")
            half, most = np.percentile(load.first_token, [50, 95])
            print(f"first token: p50 {half:.2f} s, p95 {most:.2f} s, of {len(load.first_token)}")
            print(f"memory: {before:.0f} MB after 15 seconds, {server.megabytes():.0f} MB at the end")
            for body, wanted, got in load.wrong[:5]:
                print(f"not as alone: {body}\n  alone:  {wanted!r}\n  served: {got!r}")
    finally:
        print(f"the server's exit status: {server.stop()}")
    sys.exit(bool(load.wrong))


if __name__ == "__main__":
    main()
