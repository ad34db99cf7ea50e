"""The HTTP server: uvicorn, with its own way to start and to end."""

import contextlib
import errno
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from mindgpt.config.errors import UserError
from mindgpt.serving.application import Service
from mindgpt.serving.connections import guarded_protocol
from mindgpt.serving.server_options import ServerOptions

log = logging.getLogger("mindgpt.serving")

LAST_SECONDS = 5
"""For responses to reach their clients, once everything is computed."""

ONE_SIGNAL = 1.0
"""Seconds within which a signal that comes twice counts once."""


def bound_socket(options: ServerOptions) -> socket.socket:
    """A socket at the server's address. Raises `UserError` if that is taken or not of this machine."""
    host = options.host.strip("[]")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, options.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        way_out = ": choose another --port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else ""
        raise UserError(f"--host {options.host} --port {options.port}: {error.strerror or error}{way_out}") from None
    return bound


def address_of(bound: socket.socket) -> str:
    """The URL of a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HttpServer(uvicorn.Server):
    """Serves until SIGINT or SIGTERM. What is running then has `grace` seconds to end, while new requests are refused
    with 503; what is left gets an error. The same signal again ends the server at once; another one may be MindSpore's,
    which sends the process a SIGTERM some time after a SIGINT.

    Args:
        service: the routes, and what they work with.
        on_start: called when requests are taken.
    """

    def __init__(self, service: Service, on_start: Callable[[], None] = lambda: None):
        options = service.options
        super().__init__(
            uvicorn.Config(
                service.application(),
                http=guarded_protocol(options, service.metrics),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=int(options.keep_alive),
                timeout_graceful_shutdown=LAST_SECONDS,
                backlog=1024,
            )
        )
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        self._service, self._on_start = service, on_start
        self._signalled: dict[int, float] = {}
        self._ends_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle both signals inside. uvicorn raises them again afterwards, which would end the program with them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signal.set_wakeup_fd(-1)  # a program's own handling of interrupts, which ends it at once
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; the second time, end."""
        now = time.monotonic()
        if now - self._signalled.setdefault(sig, now) > ONE_SIGNAL:
            self.should_exit = self.force_exit = True
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second. Returns whether to end."""
        if self._service.draining and self._ends_at is None:
            self._ends_at = time.monotonic() + self._service.options.grace
            log.info("shutting down: requests that are running have %g seconds", self._service.options.grace)
        ended = await super().on_tick(counter)
        if self._ends_at is not None and (self._service.scheduler.is_idle or time.monotonic() > self._ends_at):
            ended = True
        if ended and self._service.draining:
            self._service.scheduler.stop()
        return ended
