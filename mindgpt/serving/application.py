"""The routes of the server."""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mindgpt.serving.api_errors import ApiError, shutting_down
from mindgpt.serving.completion_request import read_request
from mindgpt.serving.completion_response import CompletionResponse
from mindgpt.serving.continuations import CompletionPlan, TextPiece
from mindgpt.serving.page_files import PageFiles
from mindgpt.serving.request_body import drain, read_body
from mindgpt.serving.scheduler import CompletionJob, Scheduler, echoed
from mindgpt.serving.served_model import ServedModel
from mindgpt.serving.server_metrics import ServerMetrics
from mindgpt.serving.server_options import ServerOptions, is_loopback

log = logging.getLogger("mindgpt.serving")

COMPLETIONS = "/v1/completions"
PATHS = ("/", "/health", "/metrics", "/v1/models", COMPLETIONS)


class Service:
    """What the routes work with.

    Attributes:
        draining: whether the server is about to end, and takes no new requests.
    """

    def __init__(self, model: ServedModel, scheduler: Scheduler, metrics: ServerMetrics, options: ServerOptions):
        self.model, self.scheduler, self.metrics, self.options = model, scheduler, metrics, options
        self.page = PageFiles()
        self.draining = False

    # ---- who may ask -------------------------------------------------------------------------------------------------

    def check_key(self, request: Request) -> None:
        """Raise `ApiError` if the server has a key and the request has not.

        Without a key only this machine can reach the server, which includes its browsers: a page of another site could
        make its own name mean this address. So the request must name the server by an address of this machine.
        """
        key = self.options.api_key
        if key is None:
            host = request.headers.get("host", "localhost")
            name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
            if not is_loopback(name):
                raise ApiError(
                    403, "Without a key this server answers to 127.0.0.1, ::1 and localhost only.", code="host"
                )
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
            what = "Incorrect API key provided." if given else "No API key provided."
            message = f"{what} Send it as Authorization: Bearer KEY."
            raise ApiError(401, message, code="invalid_api_key")

    # ---- routes ------------------------------------------------------------------------------------------------------

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        self.check_key(request)
        if self.draining:
            raise shutting_down()
        body = await read_body(request, self.options.max_body, self.options.read_timeout)
        asked = await run_in_threadpool(read_request, body)
        plan = await run_in_threadpool(self.model.plan, asked)
        response = CompletionResponse(self.model.name, asked, plan)
        job, pieces = self._submit(plan)
        try:
            first = await self._first(pieces, request)
        except BaseException:
            self._cancel(job)
            raise
        pieces = _with_first(first, pieces)
        if asked.stream:
            return _EventStream(response.events(pieces, job), lambda: self._cancel(job))
        try:
            return JSONResponse(await self._unless_gone(response.whole(pieces, job), request))
        finally:
            self._cancel(job)

    def _submit(self, plan: CompletionPlan) -> tuple[CompletionJob | None, AsyncIterator[TextPiece]]:
        """Give a plan to the scheduler. Returns the job, and the pieces as they come; they end or raise `ApiError`."""
        if not plan.continues and plan.logprobs is None:
            return None, _all(echoed(plan, place, copy) for place in range(len(plan.prompts)) for copy in range(plan.n))
        loop, came = asyncio.get_running_loop(), asyncio.Queue()

        def hand_on(piece: TextPiece | ApiError | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(came.put_nowait, piece)

        job = CompletionJob(plan, hand_on, time.monotonic() + self.options.timeout)
        self.scheduler.submit(job)
        return job, self._pieces(job, came)

    async def _pieces(
        self, job: CompletionJob, came: "asyncio.Queue[TextPiece | ApiError | None]"
    ) -> AsyncIterator[TextPiece]:
        while (piece := await came.get()) is not None:
            if isinstance(piece, ApiError):
                raise piece
            yield piece
        self.metrics.request_seconds.observe(time.monotonic() - job.asked)

    async def _first(self, pieces: AsyncIterator[TextPiece], request: Request) -> TextPiece | None:
        """The first piece, before which a request can still be refused with a status of its own."""

        async def first() -> TextPiece | None:
            return await anext(pieces, None)

        return await self._unless_gone(first(), request)

    async def _unless_gone(self, result: Any, request: Request) -> Any:
        """A result, unless the client goes away meanwhile: then `ClientDisconnect`."""
        wanted, gone = asyncio.ensure_future(result), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((wanted, gone), return_when=asyncio.FIRST_COMPLETED)
            if not wanted.done():
                raise ClientDisconnect
            return wanted.result()
        finally:
            for task in (wanted, gone):
                task.cancel()
            await asyncio.gather(wanted, gone, return_exceptions=True)

    def _cancel(self, job: CompletionJob | None) -> None:
        if job is not None:
            self.scheduler.cancel(job)

    def application(self) -> ASGIApp:
        """All routes."""
        app = FastAPI(title="mindgpt", docs_url=None, redoc_url=None, openapi_url=None)
        app.add_exception_handler(ApiError, self._refused)
        app.add_exception_handler(HTTPException, self._not_found)
        app.add_exception_handler(ClientDisconnect, self._gone)

        @app.post(COMPLETIONS)
        async def completions(request: Request) -> Response:
            return await self.completions(request)

        @app.get("/v1/models")
        async def models(request: Request) -> Response:
            self.check_key(request)
            return JSONResponse({"object": "list", "data": [self.model.card()]})

        @app.get("/v1/models/{name:path}")
        async def model(request: Request, name: str) -> Response:
            self.check_key(request)
            self.model.check_name(name)
            return JSONResponse(self.model.card())

        @app.get("/health")
        async def health() -> Response:
            if self.draining:
                return JSONResponse({"status": "shutting down"}, status_code=503)
            return JSONResponse({"status": "ok"})

        @app.get("/metrics")
        async def metrics(request: Request) -> Response:
            self.check_key(request)
            return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

        @app.get("/{name:path}")
        async def page(name: str) -> Response:
            if (response := self.page.response(name)) is None:
                raise ApiError(404, f"There is nothing here. The server has {', '.join(PATHS)}.", code="not_found")
            return response

        return _Logged(app, self.metrics)

    # ---- errors ------------------------------------------------------------------------------------------------------

    async def _refused(self, request: Request, error: ApiError) -> Response:
        request.scope["refused"] = error.message
        response = JSONResponse(error.body(), status_code=error.status, headers=error.headers())
        if error.status in (413, 415, 401, 403, 503):  # the body may not have been read
            return _Draining(response, request, self.options.read_timeout)
        return response

    async def _not_found(self, request: Request, error: HTTPException) -> Response:
        message = (
            f"{error.detail}: {request.method} is not for this path." if error.status_code == 405 else error.detail
        )
        return await self._refused(request, ApiError(error.status_code, message, code="not_found"))

    async def _gone(self, request: Request, error: Exception) -> Response:
        request.scope["refused"] = "the client went away"
        return Response(status_code=499)


class _EventStream(StreamingResponse):
    """Server-sent events. `on_end` is called when they are at their end, or the client is gone."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


class _Draining(Response):
    """A response after which the rest of the request's body is read and forgotten."""

    def __init__(self, response: Response, request: Request, seconds: float):
        self.response, self.request, self.seconds = response, request, seconds
        self.background = None
        self.status_code, self.raw_headers = response.status_code, response.raw_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*self.response.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.response.body, "more_body": True})
        await drain(self.request, self.seconds)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Logged:
    """Counts every response, and writes a line for each that is not a success."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answered = False

        async def noted(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                self._note(scope, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            if not answered:
                self._note(scope, 500)

    def _note(self, scope: Scope, status: int) -> None:
        path = scope["path"] if scope["path"] in PATHS else "other"
        self._metrics.requests.labels(path, str(status)).inc()
        if status >= 400:
            client = scope["client"][0] if scope.get("client") else "-"
            where = scope["method"], ascii(scope["path"][:100])
            log.info("%s %s %s %s: %.300s", status, client, *where, scope.get("refused", ""))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _with_first(first: TextPiece | None, rest: AsyncIterator[TextPiece]) -> AsyncIterator[TextPiece]:
    if first is not None:
        yield first
        async for piece in rest:
            yield piece


async def _all(pieces: Any) -> AsyncIterator[TextPiece]:
    for piece in pieces:
        yield piece
