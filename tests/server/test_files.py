"""Routes that tell and keep: settings, workflows, uploads, nodes, templates; each bare and under /api."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import PIL.Image
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from sr_pipeline.graph import Entry, Graph
from sr_pipeline.registry import Registry
from sr_pipeline.server.app import create_app, editor_folder
from sr_pipeline.server.openapi import describe
from sr_pipeline.server.routes import ENDPOINTS
from sr_pipeline.server.security import Access
from sr_pipeline.server.state import DEFAULTS, State
from sr_pipeline.server.workflow import templates


@pytest.fixture
def app(registry: Registry, tmp_path: Path) -> Starlette:
    made = create_app(registry, tmp_path, Access())
    made.state.server.load()
    return made


@pytest.fixture
def client(app: Starlette) -> TestClient:
    return TestClient(app, "http://127.0.0.1:8188")


PLAIN = [e.path for e in ENDPOINTS if e.method == "GET" and "{" not in e.path and e.path not in ("/view", "/userdata")]


@pytest.mark.parametrize("path", PLAIN)
def test_each_route_answers_bare_and_under_api(client: TestClient, path: str) -> None:
    answers = [client.get(prefix + path) for prefix in ("", "/api")]
    assert [a.status_code for a in answers] == [200, 200]
    if path != "/system_stats":
        assert answers[0].content == answers[1].content


def test_what_the_front_end_must_hear(client: TestClient) -> None:
    assert client.get("/users").json() == {"storage": "server", "migrated": True}
    assert client.get("/global_subgraphs").json() == {}
    stats = client.get("/system_stats").json()
    assert stats["system"]["ram_total"] > stats["system"]["ram_free"] > 0
    for script in client.get("/extensions").json():
        answer = client.get(script)
        assert "javascript" in answer.headers["content-type"]
        assert "registerExtension" in answer.text


def test_settings_are_kept_but_those_that_would_open_doors_or_diffusion_graphs(
    client: TestClient, app: Starlette
) -> None:
    client.post("/api/settings", json={"a": 1, "Comfy.TutorialCompleted": True})
    client.post("/settings/b", json="x")
    client.post("/settings/Comfy.Notification.ShowVersionUpdates", json=True)
    found = client.get("/settings").json()
    assert found == {
        "a": 1,
        "b": "x",
        "Comfy.Notification.ShowVersionUpdates": False,
        "Comfy.DisableFloatRounding": True,
    }
    assert client.get("/settings/b").json() == "x"
    state: State = app.state.server
    state.settings = {}
    state.load()
    assert state.settings == found


@pytest.mark.parametrize("text", ['{"a": Infinity}', '{"a": 1e999}', "[" * 100_000, "{", "[1]", "\udcff"])
def test_a_damaged_file_of_settings_is_none(app: Starlette, client: TestClient, tmp_path: Path, text: str) -> None:
    (tmp_path / "user/.settings.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    app.state.server.load()
    assert client.get("/settings").json() == DEFAULTS
    assert client.post("/settings/a", json=1).status_code == 200
    assert json.loads((tmp_path / "user/.settings.json").read_text())["a"] == 1


def test_workflows_are_kept(client: TestClient, tmp_path: Path) -> None:
    assert (
        client.post("/api/userdata/workflows%2Fa%20b.json?overwrite=false", json={"n": 1}).json()
        == "workflows/a b.json"
    )
    assert json.loads((tmp_path / "user/workflows/a b.json").read_text()) == {"n": 1}
    assert client.post("/userdata/workflows%2Fa%20b.json?overwrite=false", json={"n": 2}).status_code == 409
    info = client.post("/userdata/workflows%2Fa%20b.json?full_info=true", json={"n": 3}).json()
    assert info["size"] == len('{"n":3}')
    assert client.post("/userdata/workflows%2F.index.json", json={"favorites": []}).status_code == 200
    assert client.get("/userdata/workflows%2Fa%20b.json").json() == {"n": 3}
    assert client.get("/userdata?dir=workflows").json() == ["a b.json"]
    assert client.get("/userdata?dir=&recurse=true&split=true").json() == [
        ["workflows/a b.json", "workflows", "a b.json"]
    ]
    listed = client.get("/userdata?dir=workflows/&recurse=true&full_info=true").json()
    assert [(i["path"], i["size"]) for i in listed] == [("a b.json", 7)]
    assert (
        client.post("/userdata/workflows%2Fa%20b.json/move/workflows%2Fc.json?full_info=true").json()["path"]
        == "workflows/c.json"
    )
    assert client.delete("/userdata/workflows%2Fc.json").status_code == 204
    assert client.get("/userdata/workflows%2Fc.json").status_code == 404


def test_a_picture_is_uploaded_and_seen(client: TestClient) -> None:
    def upload(shade: int, **form: str) -> dict[str, str]:
        out = io.BytesIO()
        PIL.Image.new("RGB", (4, 4), (shade, 0, 0)).save(out, "PNG")
        found: dict[str, str] = client.post(
            "/upload/image", files={"image": ("cat.png", out.getvalue())}, data=form
        ).json()
        return found

    def shade(place: dict[str, str]) -> object:
        query = {"filename": place["name"], "subfolder": place["subfolder"], "type": place["type"]}
        pixel = PIL.Image.open(io.BytesIO(client.get("/view", params=query).content)).getpixel((0, 0))
        assert isinstance(pixel, tuple)
        return pixel[0]

    first, second = upload(1), upload(2)
    assert first == {"name": "cat.png", "subfolder": "", "type": "input"}
    assert second["name"] == "cat (1).png"
    assert upload(3, overwrite="true", subfolder="pets")["subfolder"] == "pets"
    assert upload(4, overwrite="true") == first
    assert [shade(place) for place in (first, second)] == [4, 2]


@pytest.mark.parametrize(
    ("wanted", "kind", "most"),
    [("webp;50", "WEBP", 8000), ("jpeg;20", "JPEG", 6000), ("webp", "WEBP", 16000), ("?", "WEBP", 16000)],
)
def test_a_picture_is_seen_smaller(wanted: str, kind: str, most: int, client: TestClient, tmp_path: Path) -> None:
    noise = PIL.Image.effect_noise((128, 96), 60).convert("RGB")
    noise.save(out := io.BytesIO(), "PNG")
    whole, cut = out.getvalue(), out.getvalue()[:500]
    for name, data in (("noise.png", whole), ("cut.png", whole)):
        client.post("/upload/image", files={"image": (name, data)})
    (tmp_path / "input" / "cut.png").write_bytes(cut)
    answer = client.get("/view", params={"filename": "noise.png", "type": "input", "preview": wanted})
    assert answer.headers["content-type"] == f"image/{kind.lower()}"
    assert len(answer.content) < most < len(whole)
    shown = PIL.Image.open(io.BytesIO(answer.content))
    assert (shown.format, shown.size) == (kind, noise.size)
    assert client.get("/view", params={"filename": "cut.png", "type": "input", "preview": wanted}).content == cut


def test_a_smaller_picture_is_the_same_picture(client: TestClient, tmp_path: Path) -> None:
    def seen(name: str, kind: str) -> bytes:
        query = {"filename": name, "type": "input", "preview": kind}
        return bytes(client.get("/view", params=query).content)

    folder = tmp_path / "input"
    folder.mkdir(exist_ok=True)
    PIL.Image.new("I;16", (8, 8), 30000).save(folder / "deep.png")
    PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(folder / "clear.png")
    turned = PIL.Image.Exif()
    turned[0x0112] = 6  # orientation: to be shown a quarter turn to the right
    PIL.Image.new("RGB", (8, 4)).save(folder / "turned.jpg", exif=turned)
    assert seen("deep.png", "webp") == (folder / "deep.png").read_bytes()
    assert seen("clear.png", "jpeg") == (folder / "clear.png").read_bytes()
    clear = PIL.Image.open(io.BytesIO(seen("clear.png", "webp")))
    assert (clear.format, clear.mode, clear.getchannel("A").getextrema()) == ("WEBP", "RGBA", (0, 0))
    assert PIL.Image.open(io.BytesIO(seen("turned.jpg", "webp"))).size == (4, 8)


def test_one_node(client: TestClient) -> None:
    assert list(client.get("/object_info/mse_loss").json()) == ["mse_loss"]
    assert client.get("/object_info/none").json() == {}


def test_every_shipped_graph_is_a_template(client: TestClient) -> None:
    listed = [t["name"] for t in client.get("/templates/index.json").json()[0]["templates"]]
    assert listed == list(templates())
    for name in listed:
        workflow = client.get(f"/templates/{name}.json").json()
        assert len(workflow["nodes"]) == len(templates()[name].nodes)
        assert client.get(f"/templates/{name}-1.webp").headers["content-type"] == "image/webp"


def test_a_template_whose_nodes_are_missing_is_refused_with_its_faults(app: Starlette, client: TestClient) -> None:
    """Of a pack that was installed in part; the others open."""
    app.state.server.templates["strange"] = Graph({"a": Entry("unheard_of", {})})
    for path in ("/templates/strange.json", "/templates/strange-1.webp"):
        answer = client.get(path)
        assert answer.status_code == 409
        assert answer.json()["error"]["type"] == "faulty_template"
        assert "unknown node type 'unheard_of'" in answer.json()["error"]["details"]
    assert client.get("/templates/quickstart.json").status_code == 200


def test_the_editor_is_served_as_it_is(client: TestClient) -> None:
    folder = editor_folder()
    assert folder
    page = client.get("/")
    assert page.content == (folder / "index.html").read_bytes()
    script = re.search(r'src="\./(assets/index-[^"]+)"', page.text)
    assert script
    assert client.get(f"/{script[1]}").content == (folder / script[1]).read_bytes()


def test_without_the_editor_a_page_says_how_to_get_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sr_pipeline.server.app.editor_folder", lambda: None)
    client = TestClient(create_app(registry, tmp_path, Access()), "http://localhost")
    assert "pip install 'sr-pipeline[ui]'" in client.get("/").text
    assert client.get("/queue").status_code == 200


def test_the_description_names_every_endpoint(client: TestClient) -> None:
    told = client.get("/openapi.json").json()
    assert told == json.loads(json.dumps(describe()))
    operations = [(m.upper(), p) for p, found in told["paths"].items() for m in found]
    assert sorted(operations) == sorted((e.method, e.path.replace(":path", "")) for e in ENDPOINTS)
    names = [found["operationId"] for path in told["paths"].values() for found in path.values()]
    assert len(set(names)) == len(names)
