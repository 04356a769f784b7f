"""``sr-pipeline open``: a graph shown in the editor, by a server that runs or by one that is started."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sr_pipeline.errors import UsageError
from sr_pipeline.graph import Graph
from sr_pipeline.registry import load_packs
from sr_pipeline.server.workflow import from_export, templates, to_api, to_workflow
from sr_pipeline.shipped import find_graph

# Not over a proxy: the server is on this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_SECONDS = 5.0


def workflow_to_open(name: str, packs: Iterable[str] = ()) -> tuple[str, dict[str, Any] | None]:
    """The name under which the editor opens a graph, and its workflow: None for a shipped graph, which it has.

    A file of the editor's own is shown as it is. The name tells the content, so that one does not replace another.

    Raises:
        GraphError: there is no such graph, or it is faulty.
    """
    registry = load_packs(packs)
    own: list[dict[str, Any]] = []

    def read(workflow: dict[str, Any], source: str) -> Graph:
        own.append(workflow)
        return to_api(workflow, registry, source)

    graph = from_export(find_graph(name, read), registry)
    stem = Path(graph.source).stem
    known = templates().get(stem)
    if not own and known == graph and list(known.nodes) == list(graph.nodes):
        return stem, None
    workflow = own[0] if own else to_workflow(graph, registry)
    digest = hashlib.blake2b(json.dumps(workflow).encode(), digest_size=4).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_]+', '-', stem) or 'graph'}-{digest}", workflow


def give(address: str, name: str, workflow: dict[str, Any] | None, token: str | None = None) -> bool:
    """Give a workflow to the server at an address, with the token that it asks for; false where none answers.

    Raises:
        UsageError: what answers is another program, or it does not take the workflow.
    """
    known = {"Authorization": f"Basic {b64encode(f':{token}'.encode()).decode()}"} if token else {}
    try:
        asked = urllib.request.Request(f"{address}system_stats", headers=known)
        with _OPENER.open(asked, timeout=_SECONDS) as answer:
            told = json.loads(answer.read(2**16))
        if not str(told["system"]["comfyui_version"]).startswith("sr_pipeline"):
            raise KeyError
        if workflow is not None:
            url, head = f"{address}userdata/workflows%2F{name}.json", {"Content-Type": "application/json", **known}
            request = urllib.request.Request(url, json.dumps(workflow).encode(), head)
            _OPENER.open(request, timeout=_SECONDS).close()
    except urllib.error.HTTPError as error:
        mend = "give its --token" if error.code == 401 else "give another --port"
        raise UsageError("open", f"{address} answers {error.code}", mend) from None
    except OSError:
        return False
    except (ValueError, KeyError, TypeError):
        raise UsageError("open", f"another program answers at {address}", "give another --port") from None
    return True


def keep(folder: Path, name: str, workflow: dict[str, Any] | None) -> None:
    """Put a workflow where a server that is started in a folder finds it."""
    if workflow is not None:
        path = folder / "user" / "workflows" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(workflow), encoding="utf-8")
