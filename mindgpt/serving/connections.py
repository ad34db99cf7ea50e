"""Connections that cannot be held for nothing: uvicorn's HTTP/1.1 protocol with limits of number and time."""

import asyncio
import logging
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from mindgpt.serving.server_metrics import ServerMetrics
from mindgpt.serving.server_options import ServerOptions

log = logging.getLogger("mindgpt.serving")


def guarded_protocol(options: ServerOptions, metrics: ServerMetrics) -> type[H11Protocol]:
    """The class of a server's connections.

    - A connection without a whole request header is closed after `read_timeout` seconds.
    - A client that reads nothing for as long is dropped.
    - Beyond `max_connections`, the one that has been idle longest is closed; if none is, the new one.
    """

    class GuardedProtocol(H11Protocol):
        since = 0.0  # when it became idle
        _header_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None

        @property
        def is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.since = time.monotonic()
            if len(self.connections) > options.max_connections:
                idle = [other for other in self.connections if other.is_idle and other is not self]
                victim = min(idle, key=lambda other: other.since, default=self)
                victim.drop(f"more than {options.max_connections} connections (max_connections)")
            metrics.connections.set(len(self.connections))
            if not transport.is_closing():
                self._expect_header()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._header_timer, self._write_timer):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)
            metrics.connections.set(len(self.connections))

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self.is_idle and self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.since = time.monotonic()
            if self.is_idle and not self.transport.is_closing():
                self._expect_header(options.keep_alive)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._write_timer = self.loop.call_later(options.read_timeout, self.drop, "the client reads nothing")

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

        def drop(self, why: str) -> None:
            """Close the connection at once."""
            log.info("closed %s: %s", self.client[0] if self.client else "-", why)
            self.connections.discard(self)
            self.transport.abort()

        def _expect_header(self, more: float = 0.0) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
            self._header_timer = self.loop.call_later(options.read_timeout + more, self._without_header)

        def _without_header(self) -> None:
            if self.is_idle:
                self.drop(f"no request within {options.read_timeout:g} seconds")

    return GuardedProtocol
