"""The server's parts by themselves: names in folders, frames, curves, the state of a run, the queue's file."""

from __future__ import annotations

import io
import json
import struct
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Event, current_thread
from typing import Any

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from sr_pipeline.files import written_beside
from sr_pipeline.graph import Graph
from sr_pipeline.registry import Registry
from sr_pipeline.server import jobs
from sr_pipeline.server.app import create_app
from sr_pipeline.server.curves import MAX_POINTS, Line, draw
from sr_pipeline.server.dispatch import Dispatcher
from sr_pipeline.server.folders import OutOfFolderError, inside
from sr_pipeline.server.frames import Frame, message, preview_frame, text_frame
from sr_pipeline.server.hub import Client
from sr_pipeline.server.jobs import Job, Jobs
from sr_pipeline.server.live import MAX_IMAGES, Live
from sr_pipeline.server.objects import object_info
from sr_pipeline.server.security import Access, content_policy
from sr_pipeline.server.thumbnails import draw as draw_thumbnail
from sr_pipeline.server.workflow import templates, to_workflow


@given(st.text(alphabet="ab./\\:\0 ~%é\n", max_size=12) | st.text(max_size=20))
def test_a_name_is_inside_or_refused(name: str) -> None:
    root = Path("/srv/work")
    try:
        path = inside(root, name)
    except OutOfFolderError:
        return
    assert path.is_relative_to(root)
    assert path != root
    assert not {"..", ".", ""} & set(name.split("/"))


def test_frames_are_comfyuis() -> None:
    text = text_frame("nö", "7").data
    assert isinstance(text, bytes)
    assert struct.unpack(">II", text[:8]) == (3, 3)
    assert text[8:].decode() == "nö7"
    data = preview_frame("n", "p", b"PNG").data
    assert isinstance(data, bytes)
    kind, length = struct.unpack(">II", data[:8])
    assert (kind, data[8 + length :]) == (4, b"PNG")
    assert json.loads(data[8 : 8 + length])["node_id"] == "n"
    with pytest.raises(ValueError, match="not JSON compliant"):
        message("x", {"a": float("nan")})


def test_a_slow_client_gets_the_newest_of_what_ticks_and_all_of_the_rest() -> None:
    client = Client(None, "sid")  # type: ignore[arg-type]
    for n in range(100):
        client.put(Frame(f"tick {n}", "progress"))
        client.put(Frame("hidden", "text", told_features=True))
    client.put(Frame("end"))
    client.put(Frame("last"))
    assert [frame.data for frame in client.waiting.values()] == ["tick 99", "end", "last"]


def test_a_line_keeps_its_newest_point_and_a_bounded_number() -> None:
    line = Line()
    for step in range(1, 10 * MAX_POINTS):
        line.add(step, step / 2)
        assert line.points[-1] == (step, step / 2)
        assert len(line.points) <= MAX_POINTS
    assert line.points == sorted(line.points)
    assert line.points[0][0] < MAX_POINTS
    line.add(500, 1.0)  # resumed: the later steps are done again
    assert line.points[-1] == (500, 1.0)
    line.add(501, float("nan"))
    assert line.points[-1] == (500, 1.0)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20))
def test_curves_are_drawn_of_any_numbers(values: list[float]) -> None:
    line = Line()
    for step, value in enumerate(values, 1):
        line.add(step, value)
    picture = draw({"loss": line, "empty": Line()})
    assert (picture is None) == (len(values) < 2)
    if picture:
        assert PIL.Image.open(io.BytesIO(picture)).size == (480, 240)


def test_a_falling_loss_falls_on_the_picture() -> None:
    line = Line()
    for step in range(100):
        line.add(step, 100.0 - step)
    picture = PIL.Image.open(io.BytesIO(draw({"": line}) or b"")).convert("RGB")
    blue = [(x, y) for x in range(70, 460) for y in range(30, 210) if picture.getpixel((x, y)) == (31, 119, 180)]
    left, right = min(blue), max(blue)
    assert left[1] < 40
    assert right[1] > 190


def heard(live: Live, **event: Any) -> list[Any]:
    frames = list(live.hear(event))
    return [json.loads(f.data) if isinstance(f.data, str) else bytes(f.data) for f in frames]


def test_what_is_told_late_is_what_was_told() -> None:
    live = Live("p", {"hr": "1", "d/loss": "2", "log": "3"}, ("hr",))
    heard(live, type="cached", nodes=["log"])
    heard(live, type="progress", step=5, total=10, rate=2.0)
    heard(
        live,
        type="scalars",
        values={"d/loss": (5, 0.25), "d/loss/psnr": (5, 30.0), "log": (5, float("nan")), "x": (1, 1.0)},
    )
    list(live.show("log", b"PNG"))
    frames = list(live.replay())
    told = [json.loads(f.data) for f in frames if isinstance(f.data, str)]
    assert [t["type"] for t in told] == ["execution_start", "execution_cached", "executing", "progress_state"]
    assert told[1]["data"]["nodes"] == ["3"]
    assert told[3]["data"]["nodes"]["1"] | {"value": 5, "max": 10, "state": "running"} == told[3]["data"]["nodes"]["1"]
    texts = [f.data for f in frames if f.key.startswith("text")]
    assert texts == [text_frame("2", "0.25 (step 5)\npsnr 30 (step 5)").data, text_frame("3", "nan (step 5)").data]
    assert live.outputs()["2"] == {"text": ["0.25 (step 5)\npsnr 30 (step 5)"]}


def test_a_node_remembers_its_newest_pictures() -> None:
    live = Live("p", {"a": "1"}, ())
    for n in range(MAX_IMAGES + 10):
        heard(live, type="picture", node="a", image={"filename": f"{n}.png"})
    heard(live, type="picture", node="a", image={"filename": f"{MAX_IMAGES}.png"})
    images = [image["filename"] for image in live.outputs()["1"]["images"]]
    assert len(images) == MAX_IMAGES
    assert images[-2:] == [f"{MAX_IMAGES + 9}.png", f"{MAX_IMAGES}.png"]


def job(id_: str, number: float, run_dir: Path | None = None) -> Job:
    graph = Graph()
    graph.add("ticks", id="a")
    return Job(id_, number, {"a": {}}, {}, graph, {"a": "1"}, ["1"], ("a",), run_dir=run_dir)


def test_the_queue_survives_its_server(tmp_path: Path) -> None:
    first = Jobs(tmp_path / "queue.json")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "run.json").touch()
    for made in (job("b", 2), job("a", 1, run_dir), job("c", 3)):
        first.add(made)
    taken = first.take()
    assert taken is first.running
    assert taken
    assert taken.id == "a"
    assert [j.id for j in first.pending] == ["b", "c"]
    assert first.take() is None
    first.end(first.pending[-1], "completed")
    first.flush()
    second = Jobs(tmp_path / "queue.json")
    second.load()
    assert {j.id: j.status for j in second} == {"a": "cancelled", "b": "cancelled"}
    assert [j.id for j in second.stopped] == ["a"]
    assert second.history["a"].graph == taken.graph
    assert second.next_number() == 3


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[1]", '{"a": 1}', "null", '[{"graph": "{}"}]'])
def test_a_damaged_queue_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "queue.json").write_text(text)
    found = Jobs(tmp_path / "queue.json")
    found.load()
    assert list(found) == []


@pytest.mark.parametrize(
    "damage",
    [
        {"graph": "[]"},
        {"graph": '{"a": 1}'},
        {"extra": {"a": float("inf")}},
        {"number": "1"},
        {"number": 1e999},
        {"id": 1},
    ],
)
def test_a_run_whose_entry_is_refused_is_passed_over_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: dict[str, Any]
) -> None:
    first = Jobs(tmp_path / "queue.json")
    for made in (job("a", 1), job("b", 2), job("c", 3)):
        first.add(made)
    first.flush()
    kept = json.loads(first.file.read_text())
    kept[1] |= damage
    first.file.write_text(json.dumps(kept))
    second = Jobs(first.file)
    second.load()
    assert [j.id for j in second] == ["a", "c"]
    assert ["run 1 is passed over: " in told for told in caplog.messages] == [True]


@pytest.mark.parametrize(("kept", "only"), [(None, ()), ("a", ("a",)), (["a", "b"], ("a", "b"))])
def test_the_nodes_to_run_up_to_are_kept_and_read_as_earlier_servers_kept_them(
    tmp_path: Path, kept: Any, only: tuple[str, ...]
) -> None:
    first = Jobs(tmp_path / "queue.json")
    first.add(replace(job("a", 1), only=only))
    first.flush()
    written = json.loads(first.file.read_text())
    assert written[0]["only"] == list(only)
    first.file.write_text(json.dumps([written[0] | {"only": kept}]))
    second = Jobs(first.file)
    second.load()
    assert second.history["a"].only == only


def test_a_save_writes_no_run_anew_that_has_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: Counter[str] = Counter()
    kept = jobs._kept
    monkeypatch.setattr(jobs, "_kept", lambda job: counted.update([job.id]) or kept(job))
    found = Jobs(tmp_path / "queue.json")
    for n in range(50):
        found.add(job(str(n), n))
    assert (len(counted), counted.total()) == (50, 50)
    found.pending[7].run_dir = tmp_path
    found.save()
    assert counted.total() == 51
    found.flush()
    written = json.loads(found.file.read_text())
    assert [entry["id"] for entry in written] == [str(n) for n in range(50)]
    assert written[7]["run_dir"] == str(tmp_path)


def test_the_queue_is_written_by_a_thread_that_writes_the_newest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    begun, go_on = Event(), Event()

    def slowly(*given: Any, **more: Any) -> Any:
        threads.append(current_thread())
        begun.set()
        assert go_on.wait(60)
        return written_beside(*given, **more)

    monkeypatch.setattr(jobs, "written_beside", slowly)
    found = Jobs(tmp_path / "queue.json")
    found.add(job("0", 0))
    assert begun.wait(60)
    for n in range(1, 10):
        found.add(job(str(n), n))
    go_on.set()
    found.flush()
    assert len(threads) == 2
    assert current_thread() not in threads
    assert [entry["id"] for entry in json.loads(found.file.read_text())] == [str(n) for n in range(10)]


def test_the_queue_is_on_disk_when_the_server_has_ended(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def closed(_: Dispatcher) -> None:
        app.state.server.jobs.add(job("a", 1))

    def slowly(*given: Any, **more: Any) -> Any:
        time.sleep(0.3)
        return written_beside(*given, **more)

    monkeypatch.setattr(Dispatcher, "start", lambda _: None)
    monkeypatch.setattr(Dispatcher, "close", closed)
    monkeypatch.setattr(jobs, "written_beside", slowly)
    app = create_app(registry, tmp_path, Access())
    with TestClient(app):
        pass
    assert [entry["id"] for entry in json.loads((tmp_path / "runs/.queue.json").read_text())] == ["a"]


def test_history_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_HISTORY", 3)
    found = Jobs(tmp_path / "queue.json")
    for n in range(5):
        made = job(str(n), n)
        found.add(made)
        found.end(made, "completed")
    assert list(found.history) == ["2", "3", "4"]


def test_every_node_is_told_with_all_its_sockets(registry: Registry) -> None:
    info = json.loads(json.dumps(object_info(registry)))
    assert info.keys() == registry.keys()
    for name, made in registry.items():
        told = info[name]
        inputs = told["input"]["required"] | told["input"]["optional"]
        assert inputs.keys() == made.inputs.keys()
        assert set(told["input"]["required"]) == {i.name for i in made.inputs.values() if i.required}
        assert {k: list(v) for k, v in told["input"].items()} == told["input_order"]
        assert told["output_name"] == [o.name for o in made.outputs]
        assert len(told["output"]) == len(told["output_is_list"]) == len(made.outputs)
        assert told["output_node"] is made.is_output


def test_the_policy_names_the_scripts_of_the_page() -> None:
    page = '<script src="a.js"></script><script>alert(1)</script>'
    assert "'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='" in content_policy(page)
    assert content_policy(page).count("sha256") == 1


def test_a_template_has_a_picture(registry: Registry) -> None:
    workflow = to_workflow(templates()["train_srresnet"], registry)
    picture = PIL.Image.open(io.BytesIO(draw_thumbnail(workflow)))
    assert (picture.format, picture.size) == ("WEBP", (400, 300))
    assert len(picture.convert("RGB").getcolors(100_000) or []) > 3
