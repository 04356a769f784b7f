"""Routes of files: the user's workflows, pictures of runs, uploads. Nothing outside of the server's folders."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import PIL.Image
from PIL import ImageOps
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from sr_pipeline.files import DAMAGE, written_beside
from sr_pipeline.jsontext import read_json
from sr_pipeline.server.answers import Json, fail
from sr_pipeline.server.folders import OutOfFolderError, inside
from sr_pipeline.server.security import MAX_UPLOAD
from sr_pipeline.server.state import state_of

SHOWN = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "AVIF": "image/avif"}
UPLOADED = {**SHOWN, "TIFF": "image/tiff", "BMP": "image/bmp"}
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".avif": "AVIF"}
NO_PICTURE = (OSError, PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning, *DAMAGE)
MAX_LISTED = 10_000
MAX_PREVIEWED = 2**25
"""Pixels of a picture that is encoded anew to be shown."""
SANDBOX = "default-src 'none'; sandbox"


def _path(folder: Path, name: str) -> Path:
    try:
        return inside(folder, name)
    except OutOfFolderError as error:
        fail(403, "forbidden", str(error))


def _no_file(name: str) -> NoReturn:
    fail(404, "no_file", f"there is no file {name!r}")


def get_view(request: Request) -> Response:
    """A file of a run or an upload. Pictures are shown, all else is a download.

    ``preview=webp;80`` asks for a picture as a WebP or JPEG of this quality; 90 is the usual one. Pictures that would
    lose more than that, or are very large, come as they are.
    """
    query = request.query_params
    folder = state_of(request).folders.of_type(query.get("type", "output"))
    if folder is None:
        fail(400, "bad_parameter", "type is output or input")
    name = "/".join(part for part in (query.get("subfolder", ""), query.get("filename", "")) if part)
    path = _path(folder, name)
    if not _is_file(path):
        _no_file(name)
    kind = SHOWN.get(SUFFIXES.get(path.suffix.lower(), ""))
    shown = "inline" if kind else "attachment"
    headers = {"content-security-policy": SANDBOX, "cache-control": "no-cache"}
    if kind and (wanted := query.get("preview")) and (smaller := _smaller(path, wanted)):
        return Response(smaller[0], media_type=smaller[1], headers=headers)
    return FileResponse(
        path,
        media_type=kind or "application/octet-stream",
        filename=path.name,
        content_disposition_type=shown,
        headers=headers,
    )


def _smaller(path: Path, wanted: str) -> tuple[bytes, str] | None:
    """A picture as ``FORMAT;QUALITY`` says, and its type; nothing where it cannot be read."""
    name, _, number = wanted.partition(";")
    kind, quality = "JPEG" if name == "jpeg" else "WEBP", int(number) if re.fullmatch(r"\d{1,3}", number, re.A) else 90
    try:
        with PIL.Image.open(path, formats=tuple(SHOWN)) as picture:
            large, deep = picture.width * picture.height > MAX_PREVIEWED, picture.mode[0] in "IF"
            clear = picture.has_transparency_data
            if large or deep or (clear and kind == "JPEG"):
                return None
            shown = ImageOps.exif_transpose(picture).convert("RGBA" if clear else "RGB")
        shown.save(encoded := BytesIO(), kind, quality=min(quality, 100))
    except NO_PICTURE:
        return None
    return encoded.getvalue(), SHOWN[kind]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def list_userdata(request: Request) -> Response:
    """The user's files in a folder: names, or with ``full_info`` their sizes and times."""
    query, user = request.query_params, state_of(request).folders.user
    folder = _path(user, query["dir"].strip("/")) if query.get("dir", "").strip("/") else user
    if not folder.is_dir():
        _no_file(query.get("dir", ""))
    found = folder.rglob("*") if _true(query.get("recurse")) else folder.glob("*")
    files = sorted(p for p in found if p.is_file() and not p.is_symlink() and _shown(p, folder))[:MAX_LISTED]
    names = [p.relative_to(folder).as_posix() for p in files]
    if _true(query.get("full_info")):
        return Json([_info(path, name) for path, name in zip(files, names, strict=True)])
    return Json([[n, *n.split("/")] for n in names] if _true(query.get("split")) else names)


def _shown(path: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _true(text: str | None) -> bool:
    return (text or "").lower() == "true"


def _info(path: Path, name: str) -> dict[str, Any]:
    stat = path.stat()
    return {"path": name, "size": stat.st_size, "modified": stat.st_mtime * 1000, "created": stat.st_ctime * 1000}


def get_userdata(request: Request) -> Response:
    name = request.path_params["name"]
    path = _path(state_of(request).folders.user, name)
    if not _is_file(path):
        _no_file(name)
    return FileResponse(path, media_type="application/json", headers={"content-security-policy": SANDBOX})


async def post_userdata(request: Request) -> Response:
    """Write a file of the user's: JSON, and nothing else."""
    name, body = request.path_params["name"], await request.body()
    path = _path(state_of(request).folders.user, name)
    if path.suffix != ".json":
        fail(415, "no_json", "only files that end in .json are kept")
    try:
        read_json(body)
    except (ValueError, RecursionError):
        fail(400, "no_json", "the body is no JSON")
    if path.exists() and request.query_params.get("overwrite", "true").lower() == "false":
        fail(409, "exists", f"there is a file {name!r}")
    await run_in_threadpool(_write, path, body)
    full = _true(request.query_params.get("full_info"))
    return Json(_info(path, name) if full else name)


def _write(path: Path, body: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path, sync=False) as beside:
            beside.write_bytes(body)
    except OSError as error:
        fail(409, "not_written", f"it cannot be written: {error.strerror}")


def delete_userdata(request: Request) -> Response:
    name = request.path_params["name"]
    path = _path(state_of(request).folders.user, name)
    if not _is_file(path):
        _no_file(name)
    path.unlink()
    return Response(status_code=204)


def move_userdata(request: Request) -> Response:
    user, query = state_of(request).folders.user, request.query_params
    source, target = (_path(user, request.path_params[key]) for key in ("name", "target"))
    if not _is_file(source):
        _no_file(request.path_params["name"])
    if target.suffix != ".json":
        fail(415, "no_json", "only files that end in .json are kept")
    if target.exists() and not _true(query.get("overwrite")):
        fail(409, "exists", f"there is a file {request.path_params['target']!r}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
    except OSError as error:
        fail(409, "not_written", f"it cannot be written: {error.strerror}")
    full = _true(query.get("full_info"))
    return Json(_info(target, request.path_params["target"]) if full else request.path_params["target"])


async def upload_image(request: Request) -> Response:
    """Take a picture into the input folder, under a free name or, with ``overwrite``, under its own."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        fail(415, "no_form", "a picture comes in a form, as multipart/form-data")
    async with request.form(max_files=1, max_fields=8, max_part_size=4096) as form:
        image, subfolder = form.get("image"), form.get("subfolder") or ""
        if not isinstance(image, UploadFile) or not isinstance(subfolder, str):
            fail(400, "no_picture", "the form has no file 'image'")
        if form.get("type", "input") != "input":
            fail(400, "bad_parameter", "only the folder 'input' takes uploads")
        data = await image.read(MAX_UPLOAD)
        name, again = image.filename or "", _true(str(form.get("overwrite", "")))
    folder = state_of(request).folders.input
    subfolder = subfolder.strip("/")
    path = _path(folder, "/".join(part for part in (subfolder, name) if part) or name)
    if not await run_in_threadpool(_is_picture, data):
        fail(415, "no_picture", f"it is no picture of a kind that is read: {', '.join(UPLOADED)}")
    if path.suffix.lower() not in (*SUFFIXES, ".tif", ".tiff", ".bmp"):
        fail(415, "no_picture", "its name does not end as a picture's does")
    written = await run_in_threadpool(_keep, path, data, again)
    return Json({"name": written.name, "subfolder": subfolder, "type": "input"})


def _is_picture(data: bytes) -> bool:
    try:
        with PIL.Image.open(BytesIO(data), formats=tuple(UPLOADED)) as picture:
            picture.verify()
    except NO_PICTURE:
        return False
    return True


def _keep(path: Path, data: bytes, overwrite: bool) -> Path:
    names = (path.with_stem(f"{path.stem} ({n})") if n else path for n in range(1000))
    free = path if overwrite else next((p for p in names if not p.exists()), path)
    _write(free, data)
    return free
