"""The routes as an OpenAPI description."""

from __future__ import annotations

import re
from typing import Any

from sr_pipeline import __version__
from sr_pipeline.server.routes import ENDPOINTS, Endpoint


def describe() -> dict[str, Any]:
    """OpenAPI 3.1 of all endpoints, bare; each is under /api too."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        path = re.sub(r":path}", "}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path)
    return {"openapi": "3.1.0", "info": {"title": "sr_pipeline", "version": __version__}, "paths": paths}


def _operation(endpoint: Endpoint, path: str) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", path)
    in_path = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    in_query = [{"name": name, "in": "query", "schema": schema} for name, schema in endpoint.query]
    found: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}{re.sub(r'[^a-z]+', '_', path)}".rstrip("_"),
        "summary": (endpoint.handler.__doc__ or "").partition("\n")[0],
        "parameters": [*in_path, *in_query],
        "responses": {"default": {"description": "An answer, or an error with its type and message."}},
    }
    if endpoint.body is not None:
        found["requestBody"] = {"content": {"application/json": {"schema": endpoint.body}}}
    elif endpoint.form is not None:
        found["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": endpoint.form}}}
    return found
