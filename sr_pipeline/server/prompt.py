"""POST /prompt: a client's graph checked as the command line checks it, and queued; its faults told on their nodes."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_pipeline.errors import Fault, GraphError, PipelineError
from sr_pipeline.graph import Graph
from sr_pipeline.plan import Plan, compile_plan
from sr_pipeline.registry import Registry
from sr_pipeline.server.jobs import Job
from sr_pipeline.server.workflow import read_prompt

_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


class PromptError(Exception):
    """A prompt that is not run: the body of the answer, as ComfyUI words it."""

    def __init__(self, error: dict[str, Any], node_errors: Mapping[str, Any] | None = None) -> None:
        super().__init__(error["message"])
        self.body = {"error": error, "node_errors": dict(node_errors or {})}


def refused(kind: str, text: str, details: str = "", **extra: Any) -> PromptError:
    return PromptError({"type": kind, "message": text, "details": details, "extra_info": extra})


@dataclass(frozen=True)
class Posted:
    """The body of POST /prompt, its form checked."""

    prompt: dict[str, Any]
    extra: dict[str, Any]
    targets: list[str]
    number: float | None
    front: bool
    prompt_id: str

    @property
    def workflow(self) -> dict[str, Any]:
        """The editor's workflow that came along, if one did."""
        info = self.extra.get("extra_pnginfo")
        found = info.get("workflow") if isinstance(info, dict) else None
        return found if isinstance(found, dict) else {}

    @property
    def name(self) -> str:
        """What the run's folder is named after."""
        extra = self.workflow.get("extra")
        ours = extra.get("sr_pipeline") if isinstance(extra, dict) else None
        name = ours.get("graph") if isinstance(ours, dict) else self.extra.get("name")
        return re.sub(r"[^A-Za-z0-9_]+", "-", name)[:64].strip("-") or "graph" if isinstance(name, str) else "graph"


def read_body(body: Any) -> Posted:
    """The form of a body.

    Raises:
        PromptError: it has not the form of a prompt.
    """
    if not isinstance(body, dict) or "prompt" not in body:
        raise refused("no_prompt", "No prompt provided", "wanted an object with the key 'prompt'")
    prompt, extra = body["prompt"], {} if body.get("extra_data") is None else body["extra_data"]
    targets, number, front = body.get("partial_execution_targets"), body.get("number"), body.get("front", False)
    id_ = body.get("prompt_id") or str(uuid.uuid4())
    for right, what in (
        (isinstance(prompt, dict) and prompt, "prompt is an object of nodes by id"),
        (isinstance(extra, dict), "extra_data is an object"),
        (
            targets is None or (isinstance(targets, list) and all(isinstance(t, str) for t in targets)),
            "targets are ids",
        ),
        (number is None or (isinstance(number, (int, float)) and abs(number) < 1e9), "number is a number"),
        (isinstance(front, bool), "front is true or false"),
        (isinstance(id_, str) and _ID.fullmatch(id_), "prompt_id is at most 64 letters, digits and dashes"),
    ):
        if not right:
            raise refused("invalid_prompt", "The request has not the form of a prompt", what)
    return Posted(prompt, extra, targets or [], None if isinstance(number, bool) else number, front, id_)


def job_of(posted: Posted, registry: Registry, number: float, *folders: Path) -> Job:
    """The job that a prompt asks for, its graph checked and planned.

    Ids that the editor numbered anew are ours again, because they name the random numbers and the state. Beside the
    current folder, the graph may read from ``folders``.

    Raises:
        PromptError: the graph is faulty; with its faults on the client's nodes.
    """
    names = {id_: id_ for id_ in posted.prompt}
    content: Mapping[str, Any] = posted.prompt
    try:
        read = read_prompt(posted.prompt, posted.workflow or None, registry)
        text, names = read.graph.to_json(), dict(read.ids)
        content = json.loads(text)
        graph = Graph.parse(text, posted.name).limited_to(*folders)
        only = _only(posted, names, graph, registry)
        plan = compile_plan(graph, registry, only)
    except PipelineError as error:
        raise _refusal(error, content, names, posted, registry) from None
    shown = [names[node] for node in graph.nodes if node in plan.targets]
    return Job(posted.prompt_id, number, posted.prompt, posted.extra, graph, names, shown, _stepping(plan), only)


def _only(posted: Posted, names: Mapping[str, str], graph: Graph, registry: Registry) -> tuple[str, ...]:
    """The nodes to run up to, if not all outputs are asked for."""
    ours = {theirs: id_ for id_, theirs in names.items()}
    targets = {ours.get(t, t) for t in posted.targets}
    outputs = {id_ for id_, e in graph.nodes.items() if e.class_type in registry and registry[e.class_type].is_output}
    return () if targets == outputs else tuple(sorted(targets))


def _stepping(plan: Plan) -> tuple[str, ...]:
    """The nodes that show the steps' progress: the stream first, then what changes weights."""
    changing = [op.node for op in plan.steps if op.type.mutations and op.node != plan.stream]
    return (plan.stream, *changing) if plan.stream else ()


def _refusal(
    error: PipelineError, content: Mapping[str, Any], names: Mapping[str, str], posted: Posted, registry: Registry
) -> PromptError:
    """A graph's faults as ComfyUI tells them."""
    places = {where: at for source in ("prompt", posted.name) for where, at in _places(content, source, registry)}
    on_nodes: dict[str, Any] = {}
    others = []
    for fault in error.faults:
        node, input_ = places.get(fault.where, ("", ""))
        if not node:
            others.append(str(fault))
            continue
        entry = content[node]
        kind = entry.get("class_type") if isinstance(entry, dict) else ""
        told = on_nodes.setdefault(names[node], {"errors": [], "dependent_outputs": [], "class_type": kind})
        told["errors"].append(_told(fault, entry, input_))
    details = "\n".join(others or map(str, error.faults))
    missing = _missing_type(content, names, registry)
    if missing and isinstance(error, GraphError):
        return PromptError({**missing, "details": details}, on_nodes)
    text = "Prompt outputs failed validation" if on_nodes else "The graph cannot be run"
    kind = "prompt_outputs_failed_validation" if on_nodes else "invalid_prompt"
    return PromptError({"type": kind, "message": text, "details": details, "extra_info": {}}, on_nodes)


def _places(content: Mapping[str, Any], source: str, registry: Registry) -> Iterator[tuple[str, tuple[str, str]]]:
    """Where a fault may be, as faults word it: each node and each of its inputs."""
    graph = Graph(source=source)
    for id_, entry in content.items():
        yield graph.where(id_), (id_, "")
        entry = entry if isinstance(entry, dict) else {}
        kind, inputs = entry.get("class_type"), entry.get("inputs")
        known = registry[kind].inputs if isinstance(kind, str) and kind in registry else {}
        for name in (*known, *(inputs if isinstance(inputs, dict) else ())):
            yield graph.where(id_, name), (id_, name)


def _told(fault: Fault, entry: Any, input_: str) -> dict[str, Any]:
    """A fault under a type with which the editor shows its words: of most, it shows a text of its own instead."""
    inputs = entry.get("inputs", {}) if isinstance(entry, dict) else {}
    words = "; ".join(filter(None, (fault.what, fault.fix)))
    told: dict[str, Any] = {"message": fault.what, "details": words, "extra_info": {}}
    if not input_:
        return {"type": "exception_during_validation", **told}
    absent = isinstance(inputs, dict) and input_ not in inputs
    value = inputs.get(input_) if isinstance(inputs, dict) else None
    told |= {"details": f"{input_}: {words}", "extra_info": {"input_name": input_, "received_value": value}}
    return {"type": "required_input_missing" if absent else "custom_validation_failed", **told}


def _missing_type(content: Mapping[str, Any], names: Mapping[str, str], registry: Registry) -> dict[str, Any] | None:
    for id_, entry in content.items():
        kind = entry.get("class_type") if isinstance(entry, dict) else None
        if isinstance(kind, str) and kind not in registry:
            meta = entry.get("_meta")
            title = meta.get("title", kind) if isinstance(meta, dict) else kind
            extra = {"node_id": names[id_], "class_type": kind, "node_title": title}
            return {"type": "missing_node_type", "message": f"Node {title!r} not found", "extra_info": extra}
    return None
