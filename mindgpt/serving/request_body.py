"""The body of a request, read within limits of size and time."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from mindgpt.serving.api_errors import ApiError

DRAINED = 32 * 1024 * 1024
"""Bytes of a refused body that are read and thrown away: most clients send it all before they look for a reply."""


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request.

    Args:
        most: bytes.
        seconds: in which all of it must have come.

    Raises:
        ApiError: it is too long, of another type than JSON, or too slow.
        ClientDisconnect: the client is gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another site can send other types without asking the browser
        raise ApiError(415, f"The Content-Type must be application/json, not {kind or 'absent'}.")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > most:
        raise _too_long(most)
    try:
        return await asyncio.wait_for(_read(request, most), seconds)
    except asyncio.TimeoutError:
        raise ApiError(408, f"The body did not arrive within {seconds:g} seconds.", code="slow_body") from None


async def _read(request: Request, most: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise _too_long(most)
    return bytes(body)


def _too_long(most: int) -> ApiError:
    return ApiError(413, f"The body has more than {most} bytes (max_body).", code="body_too_large")


async def drain(request: Request, seconds: float) -> None:
    """Read what is left of a refused body, up to `DRAINED` bytes, and forget it."""

    async def read() -> None:
        left = DRAINED
        while left > 0:
            message = await request.receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
            left -= len(message.get("body", b""))

    try:
        await asyncio.wait_for(read(), seconds)
    except (asyncio.TimeoutError, ClientDisconnect):
        return
