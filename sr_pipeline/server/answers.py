"""What goes in and out of a route: JSON read strictly, parameters with bounds, errors of one shape."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from starlette.requests import Request
from starlette.responses import JSONResponse

from sr_pipeline.jsontext import read_json

MAX_BYTES = 32 * 2**20


class Json(JSONResponse):
    """JSON in ASCII, because half of a surrogate pair has no UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class HttpError(Exception):
    """An answer other than the one that was asked for."""

    def __init__(self, status: int, kind: str, text: str, details: str = "") -> None:
        super().__init__(text)
        self.status, self.kind, self.text, self.details = status, kind, text, details

    def answer(self) -> Json:
        """As ComfyUI's clients read an error."""
        told = {"type": self.kind, "message": self.text, "details": self.details, "extra_info": {}}
        return Json({"error": told, "node_errors": {}}, self.status)


def fail(status: int, kind: str, text: str, details: str = "") -> NoReturn:
    raise HttpError(status, kind, text, details)


async def json_body(request: Request, default: Any = None) -> Any:
    """The body as JSON; ``default`` where it is empty and one is given.

    Its declared type is not asked for: Python's urllib calls a body a form where nobody says what it is.

    Raises:
        HttpError: 415 for a form in parts, 400 for what is no JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        fail(415, "no_json", "a form is not read here", "send JSON")
    body = await request.body()
    if not body.strip() and default is not None:
        return default
    try:
        return read_json(body)
    except (ValueError, RecursionError) as error:
        fail(400, "no_json", "the body is no JSON", str(error)[:200])


async def json_object(request: Request, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """The body as an object.

    Raises:
        HttpError: it is none.
    """
    found = await json_body(request, default)
    return found if isinstance(found, dict) else fail(400, "no_object", "the body is no object")


def number(request: Request, name: str, default: int, high: int) -> int:
    """A whole number of the query, from 0 to ``high``.

    Raises:
        HttpError: it is none.
    """
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= high):
        fail(400, "bad_parameter", f"{name} is no whole number from 0 to {high}")
    return int(text)


def ids(content: dict[str, Any], key: str) -> list[str]:
    """A list of ids in a body.

    Raises:
        HttpError: it is none.
    """
    found = content.get(key, [])
    if not isinstance(found, list) or not all(isinstance(id_, str) for id_ in found):
        fail(400, "bad_parameter", f"{key} is no list of ids")
    return found
