"""The program: its start, and its end while requests are running."""

import re
import signal
import sys
import threading
import time

import httpx
import pytest

from tests import programs

WAITING, TEXTS = 3, 16  # requests and texts of each: together seconds of work, one text at a time


def test_the_server_ends_after_what_is_running(folder, tmp_path, repo):
    """Ctrl-C while a stream is going on and requests wait: all come to their end, and new ones are refused."""
    command = [sys.executable, "-m", "mindgpt.serving", "--model", folder, "--port", "0", "--max_batch", "1"]
    process = programs.start(command, tmp_path, programs.user_environment() | {"PYTHONPATH": str(repo)})
    try:
        client = httpx.Client(base_url=_url(process), timeout=60)
        texts, waited = [], []
        body = {"prompt": "a rose", "max_tokens": 120, "ignore_eos": True, "n": TEXTS}

        def wait():
            waited.append(client.post("/v1/completions", json=body))

        with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
            events = response.iter_lines()
            next(events)
            waiting = [threading.Thread(target=wait) for _ in range(WAITING)]
            for thread in waiting:
                thread.start()
            while f"mindgpt_requests_waiting {WAITING}.0" not in client.get("/metrics").text:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)  # for which MindSpore sends a SIGTERM, too
            statuses = set()
            while not statuses & {503}:
                statuses.add(client.post("/v1/completions", json={"prompt": "is"}).status_code)
            assert client.get("/health").status_code == 503
            texts += [line for line in events if line]
        for thread in waiting:
            thread.join(60)
        out, err = process.communicate(timeout=60)
    except BaseException:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        raise
    assert texts[-1] == "data: [DONE]" and '"finish_reason":"length"' in texts[-2]
    assert [answer.status_code for answer in waited] == [200] * WAITING
    assert all(answer.json()["usage"]["completion_tokens"] == 120 * TEXTS for answer in waited)
    assert process.returncode == 0
    assert out.endswith("the server has ended\n") and "Traceback" not in err
    assert "503 127.0.0.1 POST '/v1/completions': The server is shutting down" in err


def _url(process, seconds=60):
    """Where a program says that it serves."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        assert process.poll() is None, process.communicate()
        is_fork = isinstance(process, programs.Forked)
        out = process._files[0].read_text() if is_fork else process.stdout.readline()
        if found := re.search(r"toy is served at (\S+);", out):
            return found[1]
        time.sleep(0.05)
    pytest.fail("the server has not started")


def test_help_fits_a_screen(capsys):
    from mindgpt.serving.command import parser

    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 50 and "Example: mindgpt serve --model" in shown
