"""The files of the page at `/`, read once: a request names one of them, and never a path on the disk."""

import mimetypes
from importlib import resources

from starlette.responses import Response

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}


class PageFiles:
    """The files in `page/`, by name; `index.html` is that of the empty name."""

    def __init__(self) -> None:
        folder = resources.files("mindgpt.serving") / "page"
        self._files = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}
        self._files[""] = self._files["index.html"]

    def response(self, name: str) -> Response | None:
        """The response with a file; None: there is no such file."""
        content = self._files.get(name)
        if content is None:
            return None
        ending = "." + (name or "index.html").rpartition(".")[2]
        kind = _TYPES.get(ending) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(content, media_type=kind, headers=_HEADERS)
