"""OpenAI's client against the server, and its answers against what the model says without it."""

import os
import re

import mindspore as ms
import numpy as np
import pytest

openai = pytest.importorskip("openai")

PROMPTS = ["a rose is a rose", "is", "the rose, the rose is here", "héllo, 你好"]


def texts(response):
    return [choice.text for choice in response.choices]


def reason(completion):
    return "length" if completion.finish_reason == "length" else "stop"


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "toy" and client.models.retrieve("toy") == model
    with pytest.raises(openai.NotFoundError, match="This server has 'toy'"):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    ("asked", "settings"),
    [
        ({"temperature": 0}, {}),
        ({"seed": 3}, {"do_sample": True, "seed": 3}),
        (
            {"seed": 3, "temperature": 0.7, "top_p": 0.8, "extra_body": {"top_k": 40, "min_p": 0.01}},
            {"do_sample": True, "seed": 3, "temperature": 0.7, "top_p": 0.8, "top_k": 40, "min_p": 0.01},
        ),
        (
            {"temperature": 0, "presence_penalty": 1.5, "extra_body": {"repetition_penalty": 1.3}},
            {"presence_penalty": 1.5, "repetition_penalty": 1.3},
        ),
        ({"temperature": 0, "frequency_penalty": 2}, {"frequency_penalty": 2}),
        ({"seed": -1, "n": 3}, {"do_sample": True, "seed": 2**64 - 1, "num_return_sequences": 3}),
        ({"n": 2, "extra_body": {"num_beams": 3}}, {"num_beams": 3, "num_return_sequences": 2}),
        (
            {"extra_body": {"num_beams": 2, "length_penalty": 0.3}, "stop": ["e", "a"]},
            {"num_beams": 2, "length_penalty": 0.3, "stop_strings": ["e", "a"]},
        ),
    ],
    ids=["greedy", "sampling", "filters", "penalties", "frequency", "n", "beams", "beams that stop"],
)
def test_texts_are_those_of_a_single_call(client, service, alone, asked, settings):
    wanted = alone(PROMPTS, max_new_tokens=20, **settings)
    assert len({one.text for one in wanted}) > 3  # or else equal texts prove nothing
    response = client.completions.create(model="toy", prompt=PROMPTS, max_tokens=20, **asked)
    assert texts(response) == [one.text for one in wanted]
    assert [choice.finish_reason for choice in response.choices] == list(map(reason, wanted))
    assert [choice.index for choice in response.choices] == list(range(len(wanted)))
    read = sum(len(service.model.tokenizer.encode(prompt)) for prompt in PROMPTS)
    new = sum(len(one.token_ids) for one in wanted)
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (read, new)
    assert response.usage.total_tokens == read + new


def test_token_ids_are_prompts_too(client, service):
    rows = service.model.tokenizer.encode_batch(PROMPTS)
    wanted = texts(client.completions.create(model="toy", prompt=PROMPTS, temperature=0))
    assert texts(client.completions.create(model="toy", prompt=rows, temperature=0)) == wanted
    assert texts(client.completions.create(model="toy", prompt=rows[1], temperature=0)) == wanted[1:2]


@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_stream_is_the_response_in_pieces(client, logprobs):
    asked = {"model": "toy", "prompt": PROMPTS, "max_tokens": 24, "seed": 5, "n": 2, "stop": ["s", "ro"], "echo": True}
    whole = client.completions.create(**asked, logprobs=logprobs)
    joined = [{"text": "", "reason": None, "tokens": [], "offsets": [], "top": []} for _ in whole.choices]
    events = list(
        client.completions.create(**asked, logprobs=logprobs, stream=True, stream_options={"include_usage": True})
    )
    assert events[-1].choices == [] and events[-1].usage == whole.usage
    assert all(event.usage is None for event in events[:-1])
    for event in events[:-1]:
        (choice,) = event.choices
        own = joined[choice.index]
        assert own["reason"] is None, "nothing follows the end"
        own["text"] += choice.text
        own["reason"] = choice.finish_reason
        if logprobs is not None:
            own["tokens"] += choice.logprobs.tokens
            own["offsets"] += choice.logprobs.text_offset
            own["top"] += choice.logprobs.top_logprobs or []
    assert [own["text"] for own in joined] == texts(whole)
    assert [own["reason"] for own in joined] == [choice.finish_reason for choice in whole.choices]
    assert {choice.finish_reason for choice in whole.choices} == {"stop", "length"}
    if logprobs is not None:
        assert [own["tokens"] for own in joined] == [choice.logprobs.tokens for choice in whole.choices]
        assert [own["offsets"] for own in joined] == [choice.logprobs.text_offset for choice in whole.choices]
        assert [own["top"] for own in joined] == [choice.logprobs.top_logprobs for choice in whole.choices]


def test_stop_strings_end_a_text_and_are_no_part_of_it(client):
    free = client.completions.create(model="toy", prompt=PROMPTS[0], max_tokens=40, seed=1).choices[0].text
    stop = re.search("[a-z]{2}", free[8:])[0]
    cut = client.completions.create(model="toy", prompt=PROMPTS[0], max_tokens=40, seed=1, stop=stop, logprobs=0)
    (choice,) = cut.choices
    assert choice.text == free[: free.index(stop)] and choice.finish_reason == "stop"
    assert all(offset < len(choice.text) for offset in choice.logprobs.text_offset)


def spelled(token):
    """The bytes that the API shows."""
    if not token.startswith("bytes:"):
        return token.encode()
    return bytes(int(part, 16) for part in token[len("bytes:") :].split("\\x")[1:])


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("max_tokens", [0, 30])
def test_logprobs_are_the_networks(client, service, number, max_tokens):
    """Of the prompt and of the new tokens; oracle: the logits of the whole text, read at once."""
    prompt = PROMPTS[3]
    asked = {"model": "toy", "prompt": prompt, "max_tokens": max_tokens, "seed": 2, "echo": True}
    (choice,) = client.completions.create(**asked, temperature=1.5, logprobs=number).choices
    tokenizer, network = service.model.tokenizer, service.model.pipe.model
    shown = choice.logprobs
    data = [spelled(token) for token in shown.tokens]
    by_bytes = {tokenizer.token_bytes(token): token for token in range(len(tokenizer))}
    ids = [by_bytes[piece] for piece in data]
    assert len(ids) >= len(tokenizer.encode(prompt)) + min(max_tokens, 1)
    assert ids[: len(tokenizer.encode(prompt))] == tokenizer.encode(prompt)
    assert b"".join(data).decode(errors="replace") == choice.text
    assert choice.text.startswith(prompt) and (choice.text == prompt) == (max_tokens == 0)
    padded = ms.Tensor([ids + [0] * (64 - len(ids))], ms.int32)  # one length, one graph
    logits = network(padded).asnumpy()[0, : len(ids)].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = [log_probs[place, token] for place, token in enumerate(ids[1:])]
    assert shown.token_logprobs[0] is None
    np.testing.assert_allclose(shown.token_logprobs[1:], wanted, atol=1e-4)
    for place, offset in enumerate(shown.text_offset):
        before = b"".join(data[:place])
        ways_on = (b"a", b"\x80\x80\x80", b"\x90\x80\x80", b"\xa0\x80\x80")  # each lead byte goes on with one of them
        continued = [(before + more).decode(errors="replace") for more in ways_on]
        assert offset == len(os.path.commonprefix(continued)), "characters that no later byte can change"
    if number == 0:
        assert shown.top_logprobs is None
        return
    assert shown.top_logprobs[0] is None
    for place, top in enumerate(shown.top_logprobs[1:]):
        best = np.sort(log_probs[place])[::-1][:number]
        np.testing.assert_allclose(list(top.values())[:number], best, atol=1e-4)
        assert top[shown.tokens[place + 1]] == shown.token_logprobs[place + 1]
        assert len(top) in (number, number + 1)


def test_best_of_returns_the_likeliest_texts(client):
    asked = {"model": "toy", "prompt": PROMPTS[:2], "max_tokens": 6, "seed": 4, "logprobs": 0}
    every = client.completions.create(**asked, n=5).choices
    best = client.completions.create(**asked, n=2, best_of=5)
    for place in range(2):
        ranked = sorted(
            every[place * 5 : place * 5 + 5], key=lambda choice: -float(np.mean(choice.logprobs.token_logprobs))
        )
        assert [choice.text for choice in best.choices[place * 2 : place * 2 + 2]] == [one.text for one in ranked[:2]]
        assert len({choice.text for choice in ranked}) > 2
    assert best.usage.completion_tokens == 2 * 5 * 6


def test_logit_bias(client, service):
    (token,) = service.model.tokenizer.encode("x")
    asked = {"model": "toy", "prompt": "is", "max_tokens": 3, "temperature": 0}
    assert texts(client.completions.create(**asked, logit_bias={str(token): 100})) == ["xxx"]
    free = client.completions.create(**asked, logprobs=1).choices[0]
    banned = service.model.tokenizer.encode(free.text)
    other = client.completions.create(**asked, logit_bias={str(one): -100 for one in banned}).choices[0].text
    assert not set(service.model.tokenizer.encode(other)) & set(banned)


def test_defaults_are_openais(client):
    first, second = (client.completions.create(model="toy", prompt="is") for _ in range(2))
    assert first.usage.completion_tokens <= 16 and texts(first) != texts(second), "sampled at temperature 1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "gpt-4"}, "The model 'gpt-4' is not here. This server has 'toy'."),
        ({"extra_body": {"tempreture": 1}}, "tempreture: unknown key; did you mean 'temperature'?"),
        ({"extra_body": {"messages": []}}, "messages: unknown key; this is a server of text completions"),
        ({"prompt": ""}, "prompt: prompt is empty: there is nothing to continue"),
        ({"prompt": []}, "prompt: must be a text, token ids, or a list of texts"),
        ({"prompt": [1, "a"]}, "prompt: must be a text, token ids"),
        ({"prompt": [4000]}, "prompt: prompt holds the id 4000, outside the vocabulary of 282 tokens"),
        ({"prompt": "a" * 200}, "prompt has 200 tokens; at most 128 are allowed"),
        ({"max_tokens": 128}, "maximum context length is 128 tokens; prompt has 1, and 128 more are asked for"),
        ({"max_tokens": 1000}, "max_tokens: at most 128, not 1000"),
        ({"max_tokens": 0}, "max_tokens: 0 is for the log-probabilities of the prompt"),
        ({"max_tokens": "8"}, "max_tokens: must be a whole number, not '8'"),
        ({"temperature": 3}, "temperature: must be from 0 to 2, not 3"),
        (
            {"temperature": -1, "top_p": 2},
            "temperature: must be from 0 to 2, not -1; top_p: must be from 0 to 1, not 2",
        ),
        ({"n": 0}, "n: must be at least 1, not 0"),
        ({"n": 65}, "more than the 64 texts that a request may ask for (max_texts)"),
        ({"n": 3, "best_of": 2}, "best_of: 2 is less than n, 3"),
        ({"best_of": 2, "stream": True}, "best_of: with stream"),
        ({"stop": list("abcde")}, "stop: at most 4 texts, not 5"),
        ({"stop": [""]}, "stop: must be a text or a list of texts that are not empty"),
        ({"logprobs": 21}, "logprobs: at most 20, not 21"),
        ({"logit_bias": {"a": 1}}, "logit_bias: 'a' is no token id"),
        ({"logit_bias": {"5": 101}}, "logit_bias: token 5: must be a number from -100 to 100, not 101"),
        ({"logit_bias": {"282": 1}}, "logit_bias: 282 is outside the vocabulary"),
        ({"suffix": "end"}, "suffix: only '' is allowed, not 'end': text is only continued"),
        ({"stream_options": {"include_usage": True}}, "stream_options: only with stream: true"),
        ({"extra_body": {"num_beams": 5}}, "num_beams: at most 4 (max_batch), not 5"),
        ({"extra_body": {"num_beams": 2}, "stream": True}, "stream: not with num_beams above 1"),
        ({"extra_body": {"num_beams": 2}, "n": 3}, "num_return_sequences: 3 is more than num_beams"),
        ({"extra_body": {"length_penalty": 2}}, "length_penalty: is for beam search"),
        ({"extra_body": {"top_k": -2}}, "top_k: must be 1 or more"),
    ],
)
def test_errors_name_the_field(client, changes, message):
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(**{"model": "toy", "prompt": "is"} | changes)
    error = caught.value
    assert message in error.body["message"]
    assert error.status_code == (404 if "model" in changes else 400)
    assert error.body["type"] == "invalid_request_error"
    assert set(error.body) == {"message", "type", "param", "code"}


def test_user_and_null_fields_are_ignored(client):
    asked = {"model": "toy", "prompt": "is", "temperature": 0, "max_tokens": 4}
    more = {"user": "me", "extra_body": {"suffix": None, "logit_bias": None, "best_of": None}}
    assert texts(client.completions.create(**asked, **more)) == texts(client.completions.create(**asked))
