"""Who may ask, and how much: key, addresses, sizes, times, connections, paths."""

import contextlib
import json
import logging
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest

from mindgpt.config.errors import UserError
from mindgpt.serving.command import main
from mindgpt.serving.server_options import ServerOptions

BODY = {"prompt": "a rose", "max_tokens": 2}


@pytest.fixture
def lines(caplog):
    """The lines that the server logs."""
    caplog.set_level(logging.INFO, "mindgpt.serving")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "mindgpt.serving"]


def post(url, **options):
    return httpx.post(f"{url}/v1/completions", **{"json": BODY, "timeout": 30} | options)


def connected(url):
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def test_a_key_is_asked_for(strict, lines):
    with strict(api_key="secret-1") as url:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret-1"}):
            for refused in (post(url, headers=headers), httpx.get(f"{url}/v1/models", headers=headers)):
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{url}/metrics").status_code == 401
        assert httpx.get(f"{url}/health").status_code == httpx.get(url).status_code == 200
        right = {"Authorization": "Bearer secret-1", "Host": "my.proxy.example"}
        assert post(url, headers=right).status_code == 200
    assert sum(line.startswith("401 127.0.0.1 POST '/v1/completions': ") for line in lines()) == 3


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_another_address_requires_a_key(host):
    with pytest.raises(UserError, match="a key is required: set MINDGPT_API_KEY"):
        ServerOptions(host=host).check()
    ServerOptions(host=host, api_key="secret").check()


def test_an_address_without_a_key_is_refused_before_a_model_is_read(monkeypatch):
    monkeypatch.delenv("MINDGPT_API_KEY", raising=False)
    with pytest.raises(UserError, match="a key is required"):
        main(["--model", "nowhere", "--host", "0.0.0.0"])
    monkeypatch.setenv("MINDGPT_API_KEY", " ")
    with pytest.raises(UserError, match="api_key: must be"):
        main(["--model", "nowhere"])


def test_a_port_that_is_taken(server, monkeypatch):
    with pytest.raises(UserError, match="choose another --port"):
        main(["--model", "nowhere", "--port", str(urlsplit(server).port)])


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("mindgpt.serving.command.PACKAGES", ("fastapi", "no_such_package"))
    with pytest.raises(UserError, match=r"serve needs no_such_package: pip install 'mindgpt\[serve\]'"):
        main(["--model", "nowhere"])


def test_pages_of_other_sites_cannot_ask_a_server_without_a_key(server):
    assert post(server, headers={"Host": "evil.example"}).status_code == 403
    assert post(server, headers={"Host": "localhost:1"}).status_code == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        refused = httpx.post(f"{server}/v1/completions", content=json.dumps(BODY), headers={"Content-Type": kind})
        assert refused.status_code == 415
    assert "access-control-allow-origin" not in post(server, headers={"Origin": "http://evil.example"}).headers


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "The body is not JSON"),
        (b"", "The body is not JSON"),
        (b"[1]", "The body must be a JSON object"),
        (b'{"prompt": "\xff"}', "The body is not UTF-8: byte 12"),
        (b'{"prompt": "a", "temperature": NaN}', "NaN is no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "\\ud800"}', "not valid Unicode"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "The body is not JSON"),
        (b'{"prompt": "a", "temperature": 1e999}', "temperature: must be a finite number"),
    ],
)
def test_broken_bodies(server, content, message):
    answer = post(server, json=None, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert post(server).status_code == 200


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_10_megabytes(server, lines, announced):
    content = b'{"prompt": "' + b"a" * 10_000_000 + b'"}'
    parts = content if announced else (content[start : start + 65536] for start in range(0, len(content), 65536))
    answer = post(server, json=None, content=parts, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    assert [line for line in lines() if line.startswith("413 ")] != []


def test_a_body_that_does_not_come(strict):
    with strict(read_timeout=0.3) as url, connected(url) as slow:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_header_that_comes_too_slowly_is_not_waited_for(strict, lines):
    with strict(read_timeout=0.5) as url, connected(url) as slow:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in b"GET / HTTP/1.1\r\nHost: " + b"a" * 100:
                slow.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - began < 3
        assert httpx.get(f"{url}/health").status_code == 200
    assert [line for line in lines() if "no request within 0.5 seconds" in line] != []


def test_a_client_that_reads_nothing_is_dropped(strict, service, lines):
    """And nobody waits for it."""
    body = {"prompt": ["a rose"] * 2, "max_tokens": 100, "n": 32, "logprobs": 20, "stream": True, "ignore_eos": True}
    content = json.dumps(body).encode()
    with strict(read_timeout=0.5) as url, connected(url) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(head + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        ends = time.monotonic() + 30
        while not (dropped := [line for line in lines() if "the client reads nothing" in line]):
            assert time.monotonic() < ends
            assert post(url).status_code == 200
        assert len(dropped) == 1
        while not service.scheduler.is_idle:
            assert time.monotonic() < ends + 10
            time.sleep(0.05)


def test_idle_connections_make_room(strict, lines):
    """1,000 of them; the oldest are closed, and others are served."""
    with strict(max_connections=50) as url, contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connected(url))
            if len(stack._exit_callbacks) > 300:  # within the process's open files
                stack.pop_all().close()
        assert post(url).status_code == 200
    assert sum("more than 50 connections" in line for line in lines()) > 200


@pytest.mark.parametrize(
    "path",
    ["/../pyproject.toml", "/..%2fpyproject.toml", "/%2e%2e/command.py", "//etc/passwd", "/page/index.html",
     "/index.html%00", "/.", "/..\\command.py", "/v1/models/../../command.py", "/__init__.py"],
)  # fmt: skip
def test_paths_lead_nowhere_else(server, path):
    with connected(server) as plain:
        plain.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: plain.recv(65536), b""))
    assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 "))


def test_the_page(server):
    page = httpx.get(server)
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert "mindgpt" in page.text and "default-src 'self'" in page.headers["content-security-policy"]
    assert httpx.get(f"{server}/index.html").text == page.text
    assert httpx.post(server).status_code == 405


@contextlib.contextmanager
def held(service):
    """The scheduler waits inside."""
    with service.scheduler.generator.running():
        time.sleep(0.1)
        yield


def test_a_full_queue(strict, service, lines):
    """The batch has 4 rows and 2 may wait: of 9 requests at once 3 are refused, and the others done."""
    statuses, headers = [], []

    def ask(url):
        answer = post(url)
        statuses.append(answer.status_code)
        headers.append(answer.headers)

    limit, service.scheduler.max_queue = service.scheduler.max_queue, 2
    try:
        with strict() as url:
            with held(service):
                threads = [threading.Thread(target=ask, args=(url,)) for _ in range(9)]
                for thread in threads:
                    thread.start()
                while len(statuses) < 3:
                    time.sleep(0.02)
                assert httpx.get(f"{url}/health").status_code == 200
            for thread in threads:
                thread.join(30)
    finally:
        service.scheduler.max_queue = limit
    assert sorted(statuses) == [200] * 6 + [429] * 3
    assert int(headers[0]["retry-after"]) >= 1
    assert sum(line.startswith("429 ") and "max_queue" in line for line in lines()) == 3


def test_time_is_up_in_the_queue_and_in_a_text(strict, service):
    with strict(timeout=0.3) as url:
        with held(service):
            answers = []
            waiting = threading.Thread(target=lambda: answers.append(post(url)))
            waiting.start()
            time.sleep(0.6)
        waiting.join(30)
        assert answers[0].status_code == 504 and answers[0].json()["error"]["code"] == "timeout"
        long = {"prompt": ["a rose"] * 8, "n": 8, "max_tokens": 120, "ignore_eos": True}
        answer = post(url, json=long)
        assert answer.status_code == 200
        assert {choice["finish_reason"] for choice in answer.json()["choices"]} == {"length"}
        assert 0 < answer.json()["usage"]["completion_tokens"] < 64 * 120


def test_metrics_count_what_happened(strict):
    with strict() as url:
        post(url)
        post(url, json={"prompt": "a", "max_tokens": -1})
        text = httpx.get(f"{url}/metrics").text
    assert 'mindgpt_requests_total{path="/v1/completions",status="200"} 1.0' in text
    assert 'mindgpt_requests_total{path="/v1/completions",status="400"} 1.0' in text
    assert "mindgpt_request_seconds_count 1.0" in text


def test_metrics_of_the_scheduler(server):
    def value(name):
        lines = httpx.get(f"{server}/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))

    names = ("prompt_tokens_total", "generated_tokens_total", "time_to_first_token_seconds_count")
    before = [value(f"mindgpt_{name}") for name in names]
    post(server, json={"prompt": "is is is", "max_tokens": 5, "ignore_eos": True})
    assert [value(f"mindgpt_{name}") - old for name, old in zip(names, before, strict=True)] == [3, 5, 1]
    assert value("mindgpt_time_per_output_token_seconds_count") >= 4
    assert value("mindgpt_requests_waiting") == value("mindgpt_texts_running") == 0
