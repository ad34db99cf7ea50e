"""Many clients at once: each gets the text of its single call, whoever joins, leaves or goes away meanwhile."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytest.importorskip("openai")

WORDS = ["a rose", " is", " the rose", ",", " here", " 你好", " héllo"]


def requests(number):
    """Requests of mixed lengths and settings, and the settings of a single call."""
    choose = random.Random(0)
    for place in range(number):
        prompt = "".join(choose.choices(WORDS, k=choose.randint(1, 9)))
        tokens = choose.randint(1, 50)
        kind = place % 4
        if kind == 0:
            yield prompt, {"max_tokens": tokens, "temperature": 0}, {"max_new_tokens": tokens}
        elif kind == 3:
            beams = {"max_tokens": tokens, "num_beams": 3}
            yield prompt, beams, {"max_new_tokens": tokens, "num_beams": 3}
        else:
            settings = {"seed": place, "top_p": 0.9, "temperature": 1.2}
            asked = settings | {"max_tokens": tokens, "stop": ["is"]}
            yield prompt, asked, settings | {"max_new_tokens": tokens, "stop_strings": ["is"], "do_sample": True}


def went_quiet(service, seconds=20):
    """Whether all rows are free again."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if service.scheduler.is_idle and not service.scheduler.batch.rows:
            return True
        time.sleep(0.02)
    return False


def test_each_text_is_that_of_its_single_call(client, server, service, alone):
    asked = list(requests(48))

    def ask(place):
        prompt, body, _ = asked[place]
        if place % 6 == 5:  # reads a little of a stream, and goes away
            body = {"model": "toy", "prompt": prompt, "max_tokens": 60, "stream": True, "ignore_eos": True}
            with httpx.stream("POST", f"{server}/v1/completions", json=body, timeout=60) as response:
                return next(response.iter_bytes())
        response = httpx.post(f"{server}/v1/completions", json={"prompt": prompt} | body, timeout=120)
        (choice,) = response.json()["choices"]
        return choice["text"]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(len(asked))))
    assert went_quiet(service)
    for place, ((prompt, _, settings), answer) in enumerate(zip(asked, answers, strict=True)):
        if place % 6 != 5:
            (wanted,) = alone([prompt], **settings)
            assert answer == wanted.text, (place, prompt, settings)


def test_a_request_joins_while_another_is_running(client, server):
    """The short one, asked later, ends first."""
    body = {"prompt": "a rose", "max_tokens": 120, "stream": True, "ignore_eos": True, "seed": 1}
    with httpx.stream("POST", f"{server}/v1/completions", json=body, timeout=60) as response:
        events = response.iter_lines()
        next(events)
        client.completions.create(model="toy", prompt="is", max_tokens=2)
        rest = [line for line in events if line]
    assert len(rest) > 20 and rest[-1] == "data: [DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(server, service, stream):
    before = service.metrics.new_tokens._value.get()
    body = {"prompt": ["a rose"] * 8, "max_tokens": 120, "n": 8, "stream": stream, "ignore_eos": True}
    try:
        with httpx.stream("POST", f"{server}/v1/completions", json=body, timeout=0.3) as response:
            next(response.iter_bytes())
    except httpx.ReadTimeout:
        assert not stream
    assert went_quiet(service)
    assert service.metrics.new_tokens._value.get() - before < 64 * 120 / 2
