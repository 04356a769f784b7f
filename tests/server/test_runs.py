"""Runs through the server: from the posting to history, with all that is told in between."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from server.conftest import Server, serving, wait_for
from server.pack import training
from sr_pipeline.check import with_settings
from sr_pipeline.graph import Graph
from sr_pipeline.registry import Registry, load_packs
from sr_pipeline.run import run
from sr_pipeline.server.workflow import templates, to_workflow

PACK = str(Path(__file__).parent / "pack.py")


def weights(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "weights.pt", weights_only=True)
    return found


def test_the_same_graph_gives_the_same_bits_as_on_the_command_line(server: Server, tmp_path: Path) -> None:
    prompt = training(steps=4)
    id_ = server.queued(prompt)
    assert server.ended(id_)["status"] == "completed"
    graph = Graph.parse(json.dumps(prompt))
    run(graph, registry=load_packs([PACK]), device="cpu", run_dir=tmp_path / "run")
    ours, theirs = weights(server.run_dir(id_)), weights(tmp_path / "run")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (server.run_dir(id_) / "metrics.csv").read_text() == (tmp_path / "run" / "metrics.csv").read_text()


def test_the_same_graph_gives_the_same_bits_from_the_editor_under_its_own_numbers(server: Server) -> None:
    """The editor numbers the nodes; random numbers, state and files are by ours, and messages by its."""
    prompt = training(steps=3)
    workflow = to_workflow(Graph.parse(json.dumps(prompt), "twice"), load_packs([PACK]))
    number = {node["properties"]["sr_pipeline"]["id"]: str(node["id"]) for node in workflow["nodes"]}
    renumbered = {number[id_]: {**entry, "inputs": _linked(entry["inputs"], number)} for id_, entry in prompt.items()}
    assert renumbered.keys().isdisjoint(prompt)
    with server.socket() as ear:
        id_ = server.queued(renumbered, extra_data={"extra_pnginfo": {"workflow": workflow}})
        assert ear.until("progress", prompt_id=id_)["data"]["node"] == number["ticks"]
        ear.until("executing", node=None, prompt_id=id_)
    plain = server.queued(prompt)
    server.ended(plain)
    ours, theirs = weights(server.run_dir(id_)), weights(server.run_dir(plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    outputs = server.http.get(f"/history/{id_}").json()[id_]["outputs"]
    assert outputs.keys() == {number["curve"], number["shade"]}
    assert (server.run_dir(id_) / "curves" / "curve.png").is_file()
    assert Graph.load(server.run_dir(id_) / "graph.json") == Graph.parse(json.dumps(prompt))


def _linked(inputs: dict[str, Any], number: dict[str, str]) -> dict[str, Any]:
    return {name: [number[v[0]], v[1]] if isinstance(v, list) else v for name, v in inputs.items()}


def test_a_window_is_told_all_in_the_order_that_clients_rely_on(server: Server) -> None:
    with server.socket() as ear:
        first = ear.next()
        assert first["type"] == "status"
        assert set(first["data"]) == {"status", "sid"}
        id_ = server.queued(training(steps=3, seconds=0.3))
        ear.until("executing", node=None, prompt_id=id_)
        kinds = ear.kinds()
    wanted = ["execution_start", "execution_cached", "progress_state", "progress", "executed", "execution_success"]
    assert [kinds.index(kind) for kind in wanted] == sorted(kinds.index(kind) for kind in wanted)
    assert kinds[-1] == "executing"
    texts = {told["data"]["node"]: told["data"]["text"] for told in ear.heard if told["type"] == "text"}
    assert texts["curve"] == "6 (step 3)"
    assert texts["ticks"].startswith("step 3 of 3, ")
    bars = [told["data"] for told in ear.heard if told["type"] == "progress"]
    assert bars[-1] == {"prompt_id": id_, "node": "ticks", "value": 3, "max": 3}
    states = [told["data"]["nodes"] for told in ear.heard if told["type"] == "progress_state"][-1]
    assert states["made"]["state"] == "finished"
    assert {name: states[name]["value"] for name in ("ticks", "step")} == {"ticks": 3, "step": 3}
    picture = next(
        told["data"] for told in reversed(ear.heard) if told["type"] == "preview" and told["data"]["node_id"] == "shade"
    )
    assert (picture["prompt_id"], picture["image_type"]) == (id_, "image/png")
    assert PIL.Image.open(io.BytesIO(picture["picture"])).getpixel((0, 0)) == (3, 0, 0)


def test_history_is_written_before_the_end_is_told(server: Server) -> None:
    with server.socket() as ear:
        id_ = server.queued(training(steps=2))
        ear.until("execution_success", prompt_id=id_)
        entry = server.http.get(f"/history/{id_}").json()[id_]
    assert entry["status"]["status_str"] == "success"
    assert entry["status"]["completed"] is True
    assert entry["prompt"][1] == id_
    assert entry["outputs"]["curve"]["text"] == ["4 (step 2)"]
    assert {image["filename"] for image in entry["outputs"]["shade"]["images"]} == {"1.png", "2.png"}


def test_pictures_and_curves_are_fetched_from_the_run_folder(server: Server) -> None:
    id_ = server.queued(training(steps=3))
    server.ended(id_)
    outputs = server.http.get(f"/history/{id_}").json()[id_]["outputs"]
    for node, size in (("shade", (8, 8)), ("curve", (480, 240))):
        answer = server.http.get("/api/view", params=outputs[node]["images"][-1])
        assert answer.headers["content-type"] == "image/png"
        assert PIL.Image.open(io.BytesIO(answer.content)).size == size


def test_a_window_that_comes_late_is_told_the_state_and_a_closed_one_stops_nothing(server: Server) -> None:
    with server.socket(client="window") as first:
        id_ = server.queued(training(steps=12, seconds=0.3))
        first.until("preview", node_id="shade")
    with server.socket(client="window") as again, server.socket() as other:
        for ear in (again, other):
            assert ear.until("execution_start")["data"]["prompt_id"] == id_
            assert ear.until("executing")["data"]["node"] == "ticks"
            assert ear.until("progress_state")["data"]["nodes"]["ticks"]["max"] == 12
            assert ear.until("text", node="curve")["data"]["text"]
            assert ear.until("preview", node_id="shade")["data"]["prompt_id"] == id_
        for ear in (again, other):
            ear.until("executing", node=None, prompt_id=id_)
    assert server.ended(id_)["status"] == "completed"


def test_old_clients_get_no_binary_frames(server: Server) -> None:
    with server.socket(features=False) as ear:
        id_ = server.queued(training(steps=3, seconds=0.2))
        ear.until("executing", node=None, prompt_id=id_)
    assert {"text", "preview", "feature_flags"}.isdisjoint(ear.kinds())
    assert "progress" in ear.kinds()


def test_setup_is_kept_between_runs_and_told(server: Server) -> None:
    server.ended(server.queued(training(steps=1)))
    changed = training(steps=2, curve={"class_type": "note", "inputs": {"value": ["loss", 0], "every": 2}})
    with server.socket() as ear:
        id_ = server.queued(changed)
        cached = ear.until("execution_cached", prompt_id=id_)["data"]["nodes"]
        ear.until("executing", node=None, prompt_id=id_)
    assert cached == ["made"]  # the model is changed by the steps, so it is made anew
    server.http.post("/free")
    with server.socket() as ear:
        id_ = server.queued(changed)
        assert ear.until("execution_cached", prompt_id=id_)["data"]["nodes"] == []
        ear.until("executing", node=None, prompt_id=id_)


def test_a_loss_weight_is_changed_and_nothing_upstream_is_loaded_again(server: Server, registry: Registry) -> None:
    """With the nodes of a real training: pictures and VGG are there already; what the steps change is made anew."""
    tiny = ["hr.steps=1", "hr.size=32", "hr.batch=1", "generator.blocks=1", "generator.channels=4", "pairs.crop=32"]
    tiny += ["discriminator.crop=32", "discriminator.channels=2", "discriminator.dense=4"]
    heard = []
    for weight in (0.25, 0.5):
        changes = [*tiny, f"perceptual.weight_2={weight}"]
        graph = with_settings(templates()["train_srgan"], registry, changes)
        with server.socket() as ear:
            id_ = server.queued(json.loads(graph.to_json()))
            heard.append(set(ear.until("execution_cached", prompt_id=id_)["data"]["nodes"]))
            ear.until("executing", node=None, prompt_id=id_)
        assert server.ended(id_)["status"] == "completed"
    assert heard == [set(), {"photos", "pairs", "vgg"}]


def test_the_queue_is_a_queue(server: Server) -> None:
    first = server.queued(training(steps=100, seconds=0.1))
    second, third, front = (server.queued(training(steps=1), front=f) for f in (False, False, True))
    queue = server.http.get("/queue").json()
    assert [row[1] for row in queue["queue_running"]] == [first]
    assert [row[1] for row in queue["queue_pending"]] == [front, second, third]
    assert server.http.get("/prompt").json() == {"exec_info": {"queue_remaining": 4}}
    server.http.post("/queue", json={"delete": [third]})
    assert server.job(third)["status"] == "cancelled"
    listed = server.http.get("/jobs", params={"status": "pending,in_progress", "limit": 2}).json()
    assert [job["id"] for job in listed["jobs"]] == [second, front]
    assert listed["pagination"] == {"offset": 0, "limit": 2, "total": 3, "has_more": True}
    server.http.post("/interrupt", json={"prompt_id": second})  # which does not run
    assert server.job(first)["status"] == "in_progress"
    server.http.post("/interrupt")
    assert server.ended(first)["status"] == "cancelled"
    assert server.ended(second)["execution_start_time"] > server.ended(front)["execution_start_time"]


def test_a_run_that_was_cancelled_is_saved_and_gone_on_with_to_the_same_bits(server: Server) -> None:
    prompt = training(steps=8, seconds=0.2)
    whole = server.queued(prompt)
    server.ended(whole)
    with server.socket() as ear:
        id_ = server.queued(prompt)
        ear.until("preview", node_id="shade")
        assert server.http.post(f"/api/jobs/{id_}/cancel").status_code == 200
        stopped = ear.until("execution_interrupted", prompt_id=id_)
        assert stopped["data"]["node_id"] == "ticks"
        assert ear.until("executing")["data"]["node"] is None
    assert server.ended(id_)["status"] == "cancelled"
    assert id_ in [run["prompt_id"] for run in server.http.get("/resume").json()["runs"]]
    assert server.http.post("/resume", json={"prompt_id": id_}).status_code == 200
    assert wait_for(lambda: job if (job := server.job(id_))["status"] == "completed" else None)
    ours, theirs = weights(server.run_dir(id_)), weights(server.run_dir(whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert '"resumed"' in (server.run_dir(id_) / "events.jsonl").read_text()


def test_one_output_alone(server: Server) -> None:
    id_ = server.queued(training(steps=2), partial_execution_targets=["shade"])
    server.ended(id_)
    assert list(server.http.get(f"/history/{id_}").json()[id_]["outputs"]) == ["shade"]


def test_some_outputs_alone(server: Server) -> None:
    id_ = server.queued(training(steps=2), partial_execution_targets=["shade", "curve"])
    server.ended(id_)
    assert set(server.http.get(f"/history/{id_}").json()[id_]["outputs"]) == {"shade", "curve"}
    assert not (server.run_dir(id_) / "weights.pt").exists()
    settings = json.loads((server.run_dir(id_) / "run.json").read_text())["settings"]
    assert settings["only"] == ["curve", "shade"]
    answer = server.post(training(), partial_execution_targets=["shade", "curve", "none"])
    assert answer.status_code == 400
    assert "there is no such node" in answer.text


def test_a_graph_reads_the_folders_that_the_server_was_told_and_no_others(tmp_path: Path) -> None:
    for name in ("photos", "secret"):
        (tmp_path / name).mkdir()
        PIL.Image.new("RGB", (2, 2)).save(tmp_path / name / "cat.png")

    def reading(folder: str) -> dict[str, Any]:
        image = {"class_type": "load_image", "inputs": {"path": str(tmp_path / folder / "cat.png")}}
        return {"cat": image, "saved": {"class_type": "save_image", "inputs": {"image": ["cat", 0]}}}

    with serving(tmp_path / "work", "--allow-folder", str(tmp_path / "photos")) as server:
        assert server.ended(server.queued(reading("photos")))["status"] == "completed"
        assert server.post(reading("secret")).status_code == 400


def test_a_picture_that_a_run_writes_carries_the_graph_as_it_ran(server: Server) -> None:
    photo = {"class_type": "load_image", "inputs": {"path": "sr_nodes:samples/test/picture-1a.jpg"}}
    prompt = {"photo": photo, "saved": {"class_type": "save_image", "inputs": {"image": ["photo", 0]}}}
    id_ = server.queued(prompt)
    assert server.ended(id_)["status"] == "completed"
    assert Graph.load(server.run_dir(id_) / "image.png") == Graph.parse(json.dumps(prompt))


def test_history_is_forgotten_but_not_the_folder(server: Server) -> None:
    id_ = server.queued(training(steps=1))
    server.ended(id_)
    folder = server.run_dir(id_)
    server.http.post("/history", json={"delete": [id_]})
    assert server.http.get(f"/history/{id_}").json() == {}
    assert folder.is_dir()
