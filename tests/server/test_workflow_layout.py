"""The layout: no node on another, links to the right, few crossings."""

from __future__ import annotations

from itertools import combinations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_pipeline.registry import Registry
from sr_pipeline.server.layout import GAP_X, GAP_Y, Size, positions
from sr_pipeline.server.workflow import TITLE, templates, to_workflow

CROSSINGS = {
    "compare": 4,
    "evaluate": 9,
    "quickstart": 18,
    "train_esrgan": 24,
    "train_realworld": 12,
    "train_srgan": 11,
    "train_srgan_mse": 11,
    "train_srgan_vgg22": 11,
    "train_srresnet": 2,
}
"""At most so many pairs of a shipped graph's links cross, each drawn straight between the middles of two sides."""


@st.composite
def drawings(draw: st.DrawFn) -> tuple[dict[str, Size], list[tuple[str, str]]]:
    number = draw(st.integers(0, 12))
    sides = st.floats(1, 500)
    sizes = {str(n): Size(draw(sides), draw(sides)) for n in range(number)}
    able = [(str(a), str(b)) for a, b in combinations(range(number), 2)]
    return sizes, draw(st.lists(st.sampled_from(able), unique=True, max_size=20)) if able else []


def apart(one: tuple[float, float], size: Size, other: tuple[float, float], other_size: Size) -> bool:
    """Not only not on each other, but the gaps kept."""
    beside = abs(one[0] - other[0]) >= GAP_X + (size.width if one[0] < other[0] else other_size.width) - 1
    below = abs(one[1] - other[1]) >= GAP_Y + (size.height if one[1] < other[1] else other_size.height) - 1
    return beside or below


@given(drawings())
def test_nodes_do_not_overlap_and_links_go_to_the_right(drawing: tuple[dict[str, Size], list[tuple[str, str]]]) -> None:
    sizes, links = drawing
    found = positions(sizes, links)
    assert list(found) == list(sizes)
    for one, other in combinations(sizes, 2):
        assert apart(found[one], sizes[one], found[other], sizes[other])
    for source, target in links:
        assert found[source][0] + sizes[source].width + GAP_X <= found[target][0] + 1e-6
    assert min((y for _, y in found.values()), default=0) == 0
    assert positions(sizes, links) == found


def test_a_chain_is_straight() -> None:
    found = positions({name: Size(100, 50) for name in "abc"}, [("a", "b"), ("b", "c")])
    assert found == {"a": (0, 0), "b": (180, 0), "c": (360, 0)}


def test_what_has_slack_stands_before_its_reader() -> None:
    found = positions({name: Size(100, 50) for name in "abcd"}, [("a", "b"), ("b", "c"), ("d", "c")])
    assert found["d"][0] == found["b"][0]


def test_crossed_links_are_untangled() -> None:
    """Two pairs, the second written the wrong way round."""
    found = positions({name: Size(100, 50) for name in "abAB"}, [("a", "B"), ("b", "A")])
    assert (found["a"][1] < found["b"][1]) == (found["B"][1] < found["A"][1])


def crossing(one: tuple[tuple[float, float], ...], other: tuple[tuple[float, float], ...]) -> bool:
    """Whether two segments cross, ends not counted."""

    def side(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    (a, b), (c, d) = one, other
    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


@pytest.mark.parametrize("name", sorted(CROSSINGS))
def test_shipped_graphs_are_clean(name: str, registry: Registry) -> None:
    workflow = to_workflow(templates()[name], registry)
    boxes = {
        n["id"]: ((n["pos"][0], n["pos"][1] - TITLE), Size(n["size"][0], n["size"][1] + TITLE))
        for n in workflow["nodes"]
    }
    for (one, size), (other, other_size) in combinations(boxes.values(), 2):
        assert apart(one, size, other, other_size)
    lines = []
    for _, source, _, target, *_ in workflow["links"]:
        (x, y), size = boxes[source]
        (x2, y2), size2 = boxes[target]
        lines.append(((x + size.width, y + size.height / 2), (x2, y2 + size2.height / 2)))
    found = sum(crossing(a, b) for a, b in combinations(lines, 2) if len({*a, *b}) == 4)
    assert found <= CROSSINGS[name]


def test_a_long_graph_is_laid_out() -> None:
    """A thousand nodes, of which each reads two of the ones before it."""
    links = [(str(n - back), str(n)) for n in range(1000) for back in (1, 7) if n >= back]
    found = positions({str(n): Size(10, 10) for n in range(1000)}, links)
    assert nx.is_directed_acyclic_graph(nx.DiGraph(links))
    assert len(set(found.values())) == 1000
