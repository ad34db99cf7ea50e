"""The program: its start, and its end while requests are running."""

import re
import signal
import sys
import threading
import time

import httpx
import pytest

from tests import programs


def test_the_server_ends_after_what_is_running(folder, tmp_path, repo):
    """Ctrl-C while a stream and a waiting request are going on: both come to their end, and new ones are refused."""
    command = [sys.executable, "-m", "mindgpt.serving", "--model", folder, "--port", "0", "--max_batch", "1"]
    process = programs.start(command, tmp_path, programs.user_environment() | {"PYTHONPATH": str(repo)})
    try:
        url = _url(process)
        texts, waited = [], []

        def wait():
            waited.append(httpx.post(f"{url}/v1/completions", json={"prompt": "is", "max_tokens": 3}, timeout=60))

        body = {"prompt": "a rose", "max_tokens": 120, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            events = response.iter_lines()
            next(events)
            waiting = threading.Thread(target=wait)
            waiting.start()
            while "mindgpt_requests_waiting 1.0" not in httpx.get(f"{url}/metrics").text:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)  # for which MindSpore sends a SIGTERM, too
            statuses = set()
            while not statuses & {503}:
                statuses.add(httpx.post(f"{url}/v1/completions", json={"prompt": "is"}, timeout=60).status_code)
            assert httpx.get(f"{url}/health").status_code == 503
            texts += [line for line in events if line]
        waiting.join(60)
        out, err = process.communicate(timeout=60)
    except BaseException:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        raise
    assert texts[-1] == "data: [DONE]" and '"finish_reason":"length"' in texts[-2]
    assert waited[0].status_code == 200 and waited[0].json()["usage"]["completion_tokens"] <= 3
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
