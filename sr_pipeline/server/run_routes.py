"""Routes of runs: posting, the queue, history, jobs, stopping, and going on with what was stopped."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from sr_pipeline.server.answers import HttpError, Json, fail, ids, json_body, json_object, number
from sr_pipeline.server.jobs import MAX_PENDING, Job
from sr_pipeline.server.prompt import PromptError, job_of, read_body
from sr_pipeline.server.state import State, state_of

STATUSES = ("pending", "in_progress", "completed", "failed", "cancelled")
MAX_LISTED = 1000


async def post_prompt(request: Request) -> Response:
    """Queue a graph, or say what is wrong with it, node by node."""
    server, body = state_of(request), await json_body(request)
    try:
        posted = read_body(body)
        job = await run_in_threadpool(job_of, posted, server.registry, 0.0, *server.folders.readable)
    except PromptError as refused:
        return Json(refused.body, 400)
    if server.jobs.get(job.id):
        fail(400, "invalid_prompt", "this prompt_id is taken")
    if len(server.jobs.pending) >= MAX_PENDING:
        fail(503, "queue_full", f"{MAX_PENDING} runs wait already")
    count = server.jobs.next_number(posted.front)
    job.number = count if posted.number is None else posted.number
    return await _queue(server, job)


async def _queue(server: State, job: Job) -> Response:
    server.jobs.add(job)
    server.dispatcher.next()
    await run_in_threadpool(server.jobs.flush)  # what was answered outlives the server
    return Json({"prompt_id": job.id, "number": job.number, "node_errors": {}})


async def get_prompt(request: Request) -> Response:
    return Json({"exec_info": {"queue_remaining": state_of(request).jobs.remaining}})


async def get_queue(request: Request) -> Response:
    jobs = state_of(request).jobs
    running = [jobs.running.row] if jobs.running else []
    return Json({"queue_running": running, "queue_pending": [job.row for job in jobs.pending]})


async def post_queue(request: Request) -> Response:
    """Take runs that wait out of the queue: all with ``clear``, or those of ``delete``."""
    server, content = state_of(request), await json_object(request)
    wanted = set(ids(content, "delete"))
    for job in list(server.jobs.pending):
        if content.get("clear") is True or job.id in wanted:
            server.dispatcher.stop(job)
    return Response()


async def get_history(request: Request) -> Response:
    newest = number(request, "max_items", 0, MAX_LISTED)
    history = state_of(request).jobs.history
    chosen = list(history.items())[-newest:] if newest else history.items()
    return Json({id_: job.entry for id_, job in chosen})


async def get_history_of(request: Request) -> Response:
    """One run that has ended; an empty object while it has not."""
    job = state_of(request).jobs.history.get(request.path_params["prompt_id"])
    return Json({job.id: job.entry} if job else {})


async def post_history(request: Request) -> Response:
    """Forget runs that have ended: all with ``clear``, or those of ``delete``. Their folders stay."""
    jobs, content = state_of(request).jobs, await json_object(request)
    wanted = set(ids(content, "delete"))
    jobs.history = {id_: j for id_, j in jobs.history.items() if content.get("clear") is not True and id_ not in wanted}
    jobs.save()
    return Response()


async def get_jobs(request: Request) -> Response:
    """Runs by status, newest first."""
    wanted = [s for s in request.query_params.get("status", "").split(",") if s]
    if unknown := [s for s in wanted if s not in STATUSES]:
        fail(400, "bad_parameter", f"unknown status {unknown[0][:40]!r}", f"known: {', '.join(STATUSES)}")
    limit, offset = number(request, "limit", 200, MAX_LISTED), number(request, "offset", 0, 10**8)
    found = [job.summary for job in reversed(list(state_of(request).jobs)) if not wanted or job.status in wanted]
    page = found[offset : offset + limit]
    more = offset + len(page) < len(found)
    return Json({"jobs": page, "pagination": {"offset": offset, "limit": limit, "total": len(found), "has_more": more}})


async def get_job(request: Request) -> Response:
    job = _job(request)
    workflow = {"prompt": job.prompt, "extra_data": job.extra}
    return Json({**job.summary, "outputs": job.shown, "workflow": workflow, "execution_status": job.entry["status"]})


def _job(request: Request) -> Job:
    job = state_of(request).jobs.get(request.path_params["job_id"])
    return job or fail(404, "no_job", "there is no such job")


async def cancel_job(request: Request) -> Response:
    """Stop a run after its step and save it, or take it out of the queue; asked twice, end it at once."""
    job = _job(request)
    if job.status in ("pending", "in_progress"):
        state_of(request).dispatcher.stop(job)
    return Json({"cancelled": True})


async def cancel_jobs(request: Request) -> Response:
    server, content = state_of(request), await json_object(request)
    for id_ in ids(content, "job_ids"):
        job = server.jobs.get(id_)
        if job is not None and job.status in ("pending", "in_progress"):
            server.dispatcher.stop(job)
    return Json({"cancelled": True})


async def interrupt(request: Request) -> Response:
    """Stop what runs, or nothing where another run is named."""
    server, content = state_of(request), await json_object(request, {})
    job = server.jobs.running
    if job is not None and content.get("prompt_id") in (None, job.id):
        server.dispatcher.stop(job)
    return Response()


async def free(request: Request) -> Response:
    """Let the worker forget what it keeps between runs."""
    await json_object(request, {})
    state_of(request).dispatcher.free()
    return Response()


async def get_resume(request: Request) -> Response:
    """The runs that were stopped, by somebody, by a failure or with the server, and can be gone on with."""
    found = [
        {"prompt_id": job.id, "graph": job.graph.source, "run_dir": job.run_dir.name, "stopped": job.ended}
        for job in state_of(request).jobs.stopped
        if job.run_dir is not None
    ]
    return Json({"runs": found})


async def post_resume(request: Request) -> Response:
    """Queue a run that was stopped, to go on in its folder."""
    server, content = state_of(request), await json_object(request)
    id_ = content.get("prompt_id")
    job = server.jobs.history.get(id_) if isinstance(id_, str) else None
    if job is None:
        raise HttpError(404, "no_run", "there is no such run that was stopped")
    if not job.resumable:
        raise HttpError(409, "not_stopped", "this run has ended, or it never began")
    del server.jobs.history[job.id]
    job.status, job.number = "pending", server.jobs.next_number()
    job.shown, job.error, job.messages, job.started, job.ended = {}, None, [], None, None
    return await _queue(server, job)
