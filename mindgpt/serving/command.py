"""Serve a model over HTTP, with OpenAI's completions API, metrics and a page to try it.

Example: mindgpt serve --model gpt2-hf/ --port 8000
Then:    curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
             -d '{"prompt": "Once upon a time", "max_tokens": 32}'
"""

import argparse
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mindgpt.config.arguments import CheckedParser, ShowVersion, path_argument
from mindgpt.config.errors import UserError
from mindgpt.serving.server_options import ServerOptions

if TYPE_CHECKING:
    from mindgpt.serving.application import Service

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
KEY_VARIABLE = "MINDGPT_API_KEY"


def main(argv: Sequence[str] | None = None) -> None:
    """`mindgpt serve`; `argv` None means the arguments of this process.

    Raises:
        UserError: an option, the model or the address is wrong, or a package is missing.
    """
    given = parser().parse_args(argv)
    check_packages()
    options = options_of(given)
    options.check()
    from mindgpt.serving.http_server import HttpServer, address_of, bound_socket

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    bound = bound_socket(options)
    url = address_of(bound)
    _prepare()
    service = build_service(given.model, given.tokenizer, given.name, options)

    def say_so() -> None:
        print(f"{service.model.name} is served at {url}; its page is {url}/, the API {url}/v1", flush=True)

    HttpServer(service, say_so).run(sockets=[bound])
    print("the server has ended", flush=True)


def check_packages() -> None:
    """Raise a UserError if a package of the server is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs {', '.join(missing)}: pip install 'mindgpt[serve]'")


def _prepare() -> None:
    """Choose the device; with lines for the user."""
    from mindgpt.config.execution_sections import ContextSection
    from mindgpt.io.user_cache import work_folder
    from mindgpt.models.acceleration import why_no_kernels
    from mindgpt.runtime.device import prepare_device
    from mindgpt.runtime.ranks import say

    for note in prepare_device(ContextSection(), work_folder()):
        say(note)
    if reason := why_no_kernels():
        say(f"on CPU, MindSpore's own operators are used, which takes longer than mindgpt's kernels would: {reason}")


def build_service(model: str, tokenizer: str | None, name: str | None, options: ServerOptions) -> "Service":
    """Load a model, and compile all that it needs; its scheduler runs from then on."""
    from mindgpt.serving.application import Service
    from mindgpt.serving.scheduler import Scheduler
    from mindgpt.serving.served_model import ServedModel
    from mindgpt.serving.server_metrics import ServerMetrics

    served, metrics = ServedModel.load(model, tokenizer, name, options), ServerMetrics()
    print("compiling ...", flush=True)
    limits = options.max_batch, options.max_queue, served.slots
    scheduler = Scheduler(served.generator, served.tokenizer, *limits, metrics)
    scheduler.start()
    return Service(served, scheduler, metrics, options)


def options_of(given: argparse.Namespace) -> ServerOptions:
    """The server's options among the arguments."""
    names = ServerOptions.__dataclass_fields__
    values = {name: getattr(given, name) for name in names if name != "api_key"}
    return ServerOptions(**values, api_key=given.api_key or os.environ.get(KEY_VARIABLE))


def parser() -> CheckedParser:
    """The arguments of `mindgpt serve`."""
    defaults = ServerOptions()
    made = CheckedParser.documented(__doc__)
    made.prog = "mindgpt serve"
    made.add_argument("--version", action=ShowVersion)
    made.add_argument("--model", required=True, type=path_argument, metavar="PATH", help="folder or .ckpt of the model")
    made.add_argument(
        "--tokenizer", type=path_argument, metavar="DIR", help="folder of the tokenizer (beside the model)"
    )
    made.add_argument("--name", metavar="NAME", help="what requests call the model (the folder's name)")

    where = made.add_argument_group("address and access")
    where.add_argument("--host", default=defaults.host, help="address to listen on (%(default)s: this machine only)")
    where.add_argument("--port", type=port, default=defaults.port, help="%(default)s; 0: any free one")
    where.add_argument(
        "--api_key",
        metavar="KEY",
        help=f"key that requests must send; better set {KEY_VARIABLE}, which ps does not show",
    )

    limits = made.add_argument_group("limits")
    for name, kind, help_text in LIMITS:
        default = getattr(defaults, name)
        shown = "the context length" if default is None else str(default if kind is count else f"{default:g}")
        limits.add_argument(
            f"--{name}",
            type=kind,
            default=default,
            metavar="N" if kind is count else "SECONDS",
            help=f"{help_text} ({shown})",
        )
    return made


def count(text: str) -> int:
    """A whole number from 1."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def port(text: str) -> int:
    """A port."""
    if not (text.isascii() and text.isdecimal()) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number up to 65535, not {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """A time above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return number


LIMITS = (
    ("max_batch", count, "texts that are continued together"),
    ("max_queue", count, "requests that may wait; more get 429"),
    ("max_prompt_tokens", count, "tokens of a prompt"),
    ("max_tokens", count, "new tokens of a text"),
    ("max_texts", count, "texts of a request: prompts times n"),
    ("max_logprobs", count, "likeliest tokens beside each token"),
    ("max_body", count, "bytes of a request; more get 413"),
    ("max_connections", count, "open connections"),
    ("timeout", seconds, "for a request; its text then ends as it is"),
    ("read_timeout", seconds, "for a client to send a request, or to read"),
    ("keep_alive", seconds, "for which an idle connection is kept"),
    ("grace", seconds, "for running requests when the server ends"),
)
