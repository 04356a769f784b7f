"""What graphs compile to: phases, need, order, refusals, cadence, gradients, lifetimes."""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toys
from sr_pipeline.errors import GraphError, UsageError
from sr_pipeline.graph import Entry, Graph, Link, Ref
from sr_pipeline.node import node
from sr_pipeline.plan import Op, compile_plan, describe, mermaid
from sr_pipeline.plan.cadence import fires
from sr_pipeline.registry import Registry
from sr_pipeline.sockets import Model, Mutates, OutputName, RunDir


def names(ops: tuple[Op, ...]) -> list[str]:
    return [op.node for op in ops]


def op(text: str, id_: str) -> Op:
    return next(op for op in toys.plan_of(text).ops if op.node == id_)


def refuses(text: str, *messages: str) -> None:
    """The graph is refused with exactly these faults."""
    with pytest.raises(GraphError, match=f"^{re.escape(chr(10).join(messages))}$"):
        toys.plan_of(text)


# phases


def test_phases_are_inferred() -> None:
    plan = toys.plan_of(toys.REGRESSION)
    assert names(plan.setup) == ["net", "opt"]
    assert names(plan.steps) == ["x", "y", "loss", "step", "log", "mean", "export"]
    assert names(plan.finish) == ["report"]
    assert (plan.stream, plan.reducers, list(plan.state)) == ("x", ("mean",), ["net", "opt"])


def test_without_a_stream_each_node_runs_once() -> None:
    plan = toys.plan_of("net = network()\ntwin = duplicate(net)\nrate = halving()\nlog = log(rate)\nshow = show(twin)")
    assert names(plan.setup) == ["net", "twin", "rate", "log", "show"]
    assert (plan.steps, plan.finish, plan.stream, plan.state) == ((), (), None, {})


def test_a_node_that_takes_step_is_of_the_step_and_needs_the_stream() -> None:
    plan = toys.plan_of("rate = halving()\nx = batches()\nlog = log(rate)")
    assert (names(plan.setup), names(plan.steps)) == ([], ["rate", "x", "log"])


def test_a_value_of_each_step_and_a_reducers_result_do_not_meet() -> None:
    what = "needs a value of each step (x) and one that a reducer gives after the last"
    refuses(
        "x = batches()\ns = size(x)\nmean = mean_of(s)\nboth = both(mean, x)",
        f"graph: both: {what}; put a reducer between",
    )


# need


def test_only_what_outputs_need_runs() -> None:
    plan = toys.plan_of("x = batches()\na = double(x)\nb = double(x)\nc = double(a)\nw = write(a)")
    assert names(plan.ops) == ["x", "a", "w"]


def test_only_runs_up_to_one_node() -> None:
    assert names(toys.plan_of(toys.REGRESSION, "opt").ops) == ["net", "opt"]
    assert names(toys.plan_of("x = batches()\ny = double(x)\nw = write(y)", "y").ops) == ["x", "y"]


def test_only_runs_up_to_any_number_of_nodes() -> None:
    text = "x = batches()\na = double(x)\nb = double(x)\nc = double(a)\nw = write(c)"
    assert names(toys.plan_of(text, ["a", "b"]).ops) == ["x", "a", "b"]
    assert names(toys.plan_of(text, []).ops) == ["x", "a", "c", "w"]
    with pytest.raises(UsageError, match="--only d: there is no such node"):
        toys.plan_of(text, ["a", "d"])


def test_a_mutator_is_needed_by_a_step_that_reads_what_it_changes() -> None:
    assert "step" in names(toys.plan_of(toys.REGRESSION, "y").ops)


def test_only_an_unknown_node_is_refused() -> None:
    with pytest.raises(UsageError, match=re.escape("--only nett: there is no such node; did you mean 'net'?")):
        toys.plan_of(toys.REGRESSION, "nett")


def test_a_graph_without_an_output_is_refused() -> None:
    fix = "add one (a node that writes or reports), or run one node with --only"
    refuses("x = batches()", f"graph: nothing to do: no node of the graph is an output; {fix}")


# order


class Cell:
    """Something that can change."""

    def __init__(self, text: str) -> None:
        self.text = text


@node(output=True)
def make(name: str) -> Cell:
    return Cell(name)


@node(output=True)
def read(name: str, a: Cell, b: Cell | None = None) -> Cell:
    return Cell(f"{name}({a.text}{',' + b.text if b else ''})")


@node(output=True)
def change(name: str, a: Mutates[Cell], b: Cell | None = None) -> Cell:
    a.text = f"{name}[{a.text}{',' + b.text if b else ''}]"
    return a


CELLS = Registry([make, read, change])


@st.composite
def cell_graphs(draw: st.DrawFn) -> Graph:
    """A DAG of up to six makers, readers and changers of cells, its nodes in any order in the file."""
    entries: dict[str, Entry] = {}
    for n in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from([read, change])) if n else make
        inputs: dict[str, Any] = {"name": f"n{n}"}
        if n:
            inputs["a"] = Link(draw(st.sampled_from(list(entries))), 0)
            if draw(st.booleans()):
                inputs["b"] = Link(draw(st.sampled_from(list(entries))), 0)
        entries[f"n{n}"] = Entry(kind.__name__, inputs)
    return Graph({id_: entries[id_] for id_ in draw(st.permutations(list(entries)))})


def execute(graph: Graph, order: tuple[str, ...], pure: bool) -> dict[str, str] | None:
    """The text that each node gave when it returned; None where a node would run before its inputs.

    Where ``pure``, changers change copies: what the wires say, whatever the order.
    """
    values: dict[str, Cell] = {}
    texts: dict[str, str] = {}
    for id_ in order:
        links = {k: v.node for k, v in graph.nodes[id_].inputs.items() if isinstance(v, Link)}
        if not values.keys() >= set(links.values()):
            return None
        given = {k: Cell(values[source].text) if pure else values[source] for k, source in links.items()}
        values[id_] = CELLS[graph.nodes[id_].class_type].function(name=id_, **given)
        texts[id_] = values[id_].text
    return texts


def sound_orders(graph: Graph) -> list[tuple[str, ...]]:
    """All orders, the nearest to the file's first, in which every node reads what the wires say."""
    meant = execute(graph, tuple(sorted(graph.nodes)), pure=True)
    return [order for order in permutations(graph.nodes) if execute(graph, order, pure=False) == meant]


def changed_twice(graph: Graph) -> bool:
    changed = [e.inputs["a"].node for e in graph.nodes.values() if e.class_type == "change"]
    return len(set(changed)) < len(changed)


@given(cell_graphs())
def test_the_order_is_the_soundest_nearest_to_the_file_or_there_is_none(graph: Graph) -> None:
    orders = [] if changed_twice(graph) else sound_orders(graph)
    if orders:
        assert tuple(names(compile_plan(graph, CELLS).setup)) == orders[0]
    else:
        with pytest.raises(GraphError, match=r"is changed twice|but also depends on the change"):
            compile_plan(graph, CELLS)


@given(cell_graphs(), st.randoms())
def test_the_order_depends_on_the_file_alone(graph: Graph, random: Any) -> None:
    """Not on the hashes of ids, nor on the order of a node's inputs."""
    words = random.sample([f"{a}{b}" for a in "abcdefgh" for b in "stuvwxyz"], len(graph.nodes))
    rename = dict(zip(graph.nodes, words, strict=True))
    renamed = Graph()
    for id_, entry in graph.nodes.items():
        inputs = {k: Link(rename[v.node], 0) if isinstance(v, Link) else v for k, v in entry.inputs.items()}
        renamed.nodes[rename[id_]] = Entry(entry.class_type, dict(reversed(inputs.items())))
    assert outcome(renamed) == [re.sub(r"n\d", lambda found: rename[found[0]], line) for line in outcome(graph)]


def test_of_two_refusals_the_first_of_the_file_is_told() -> None:
    for n in range(20):
        cells = Graph()
        for id_ in (f"a{n}", f"b{n}"):
            old = cells.add(make, id=f"{id_}-old", name="")
            new = cells.add(change, id=f"{id_}-new", name="", a=old)
            cells.add(read, id=f"{id_}-both", name="", a=new, b=old)
        message = f"graph: a{n}-both.b: reads a{n}-old.cell, which 'a{n}-new' changes, but also depends on the change"
        with pytest.raises(GraphError, match=f"^{re.escape(message)}"):
            compile_plan(cells, CELLS)


def outcome(graph: Graph) -> list[str]:
    try:
        return names(compile_plan(graph, CELLS).setup)
    except GraphError as error:
        return str(error).splitlines()


EMA = (
    toys.REGRESSION
    + """
    copied = duplicate(net)
    avg = average(step, copied, every=2)
"""
)


def test_readers_of_an_old_value_run_before_it_changes() -> None:
    steps = names(toys.plan_of(EMA + "    old = forward(copied, x)\n    w = write(old)").steps)
    assert steps.index("step") < steps.index("old") < steps.index("avg")


def test_a_long_chain_compiles() -> None:
    graph = Graph()
    last: Ref = graph.add(toys.batches, id="n0")
    net = graph.add(toys.network, id="net")
    optimizer = graph.add(toys.adam, id="opt", model=net)
    last = graph.add(toys.forward, id="y", model=net, x=last)
    for n in range(1, 10_000):
        last = graph.add(toys.double, id=f"n{n}", x=last)
    loss = graph.add(toys.size, id="loss", x=last)
    graph.add(toys.optimizer_step, id="step", loss=loss, model=net, optimizer=optimizer)
    graph.add(toys.write, id="w", x=last)
    assert len(compile_plan(graph, toys.REGISTRY).steps) == 10_004


# refusals

NETS = """
    x = batches()
    G = network()
    D = network()
    optG = adam(G)
    optD = adam(D)
    sr = forward(G, x)
    real = forward(D, x)
    fake = forward(D, sr)
    d_loss = distance(real, fake)
    D1 = optimizer_step(d_loss, D, optD)
"""
PAPER = (
    NETS
    + """
    judged = forward(D1, sr)
    g_loss = size(judged)
    G1 = optimizer_step(g_loss, G, optG)
    log = log(g_loss)
"""
)
OLD = (
    NETS
    + """
    g_loss = size(fake)
    G1 = optimizer_step(g_loss, G, optG)
    log = log(g_loss)
"""
)
K2 = (
    NETS
    + """
    real2 = forward(D1, x)
    fake2 = forward(D1, sr)
    d_loss2 = distance(real2, fake2)
    D2 = optimizer_step(d_loss2, D1, D1.optimizer)
    judged = forward(D2, sr)
    g_loss = size(judged)
    G1 = optimizer_step(g_loss, G, optG)
    log = log(g_loss)
"""
)


def test_a_value_changed_twice_is_refused() -> None:
    refuses(
        NETS + "    again = optimizer_step(d_loss, D, D1.optimizer)\n    log = log(d_loss)",
        "graph: again.model: D.model is changed twice: by 'D1' and by 'again'; chain them: [\"D1\", 0]",
    )


def test_an_optimizer_in_two_unchained_steps_is_refused() -> None:
    refuses(
        NETS + "    again = optimizer_step(d_loss, D1, optD)\n    log = log(d_loss)",
        "graph: again.optimizer: optD.optimizer is changed twice: by 'D1' and by 'again'; chain them: [\"D1\", 1]",
    )


def test_an_old_value_read_in_a_later_phase_is_refused() -> None:
    refuses(
        "net = network()\nloaded = load(net)\nx = batches()\ny = forward(net, x)\nw = write(y)",
        "graph: y.model: reads net.model after 'loaded' changed it (setup runs before step); "
        'read the changed value: ["loaded", 0]',
    )


def test_a_backward_pass_after_a_change_is_refused() -> None:
    refuses(
        NETS
        + """
    judged = forward(D1, sr)
    old = forward(D, sr)
    g_loss = distance(judged, old)
    G1 = optimizer_step(g_loss, G, optG)
    log = log(g_loss)""",
        "graph: G1: the backward pass of 'G1' would run after 'D1' changed D.model, which it reads through 'old'; "
        'wire old.model to the changed value, ["D1", 0], or let one step take the sum of the losses',
    )


def test_a_reader_of_the_old_that_depends_on_the_change_is_refused() -> None:
    refuses(
        EMA + "    a = forward(avg, x)\n    b = forward(copied, a)\n    w = write(b)",
        "graph: b.model: reads copied.model, which 'avg' changes, but also depends on the change; "
        'wire b.model to the changed value, ["avg", 0]',
    )


def test_an_optimizer_of_another_model_is_refused() -> None:
    refuses(
        toys.REGRESSION.replace("opt = adam(net)", "other = network()\n    opt = adam(other)"),
        "graph: step.optimizer: 'opt' was made from 'other', but the step changes 'net'; "
        "wire an optimizer made from 'net'",
    )


@pytest.mark.parametrize(
    "loss",
    ["size(x)", "hard_size(y)", "size(z)"],
    ids=["of the data alone", "by a node that no gradient passes", "behind such a node"],
)
def test_a_loss_without_a_way_from_the_model_is_refused(loss: str) -> None:
    refuses(
        toys.REGRESSION.replace("distance(y, x)", loss).replace("loss =", "z = rounded(y)\n    loss ="),
        "graph: step.loss: the loss has no differentiable way from the parameters of 'net'; "
        "compute it from what 'net' makes, or step the model that it depends on",
    )


def test_an_eval_pass_that_a_training_pass_needs_first_is_refused() -> None:
    text = toys.REGRESSION.replace("distance(y, x)", "distance(z, x)")
    refuses(
        text.replace("    loss =", "    hard = rounded(y)\n    z = forward(net, hard)\n    loss ="),
        "graph: y: reads net.model without training before a training pass over it that depends on it; "
        "read the value that the optimizer step returns",
    )


def test_a_cadence_as_a_link_is_refused() -> None:
    refuses(
        "n = number()\nx = batches()\nw = write(x, every=n)",
        "graph: w.every: a cadence cannot be a link; give the number of steps",
    )


# legal wirings


def test_the_papers_wiring_updates_d_then_g_against_it() -> None:
    steps = names(toys.plan_of(PAPER).steps)
    assert steps.index("D1") < steps.index("judged") < steps.index("G1")


def test_with_the_old_d_g_is_updated_first_and_shares_the_graph() -> None:
    plan = toys.plan_of(OLD)
    assert names(plan.steps).index("G1") < names(plan.steps).index("D1")
    assert [o.node for o in plan.ops if o.retain_graph] == ["G1"]


def test_a_graph_is_retained_over_the_steps_between() -> None:
    text = """
    x = batches()
    D = network()
    G = network()
    H = network()
    optD = adam(D)
    optG = adam(G)
    optH = adam(H)
    sr = forward(G, x)
    fake = forward(D, sr)
    g_loss = size(fake)
    G1 = optimizer_step(g_loss, G, optG)
    h = forward(H, x)
    h_loss = size(h)
    H1 = optimizer_step(h_loss, H, optH)
    d_loss = distance(fake, x)
    D1 = optimizer_step(d_loss, D, optD)
    log = log(g_loss)
    log_h = log(h_loss)
"""
    plan = toys.plan_of(text)
    assert [o.node for o in plan.steps if o.node in ("G1", "H1", "D1")] == ["G1", "H1", "D1"]
    assert [o.node for o in plan.ops if o.retain_graph] == ["G1"]


def test_two_chained_steps_of_d() -> None:
    steps = names(toys.plan_of(K2).steps)
    assert steps.index("D1") < steps.index("real2") < steps.index("D2") < steps.index("judged") < steps.index("G1")
    assert list(toys.plan_of(K2).state) == ["G", "D", "optG", "optD"]


def test_a_value_that_is_no_model_has_no_buffers() -> None:
    """A training pass may read a tensor and what another node made of it."""
    text = toys.REGRESSION.replace("y = forward(net, x)", "two = double(x)\n    y = judge(net, x, two)")
    assert names(toys.plan_of(text).steps)[:3] == ["x", "two", "y"]


# gradients


def flags(text: str, what: str) -> set[str]:
    return {o.node for o in toys.plan_of(text).ops if getattr(o, what)}


def test_only_nodes_on_the_way_build_autograd_graphs() -> None:
    text = PAPER + "    shown = double(sr)\n    w = write(shown)"
    assert flags(text, "grad") == {"real", "fake", "d_loss", "sr", "judged", "g_loss"}
    assert flags(text, "retain_graph") == set()


def test_only_what_leads_to_a_loss_trains() -> None:
    text = PAPER + "    seen = forward(G1, x)\n    w = write(seen)"
    assert flags(text, "training") == {"sr", "real", "fake", "judged"}


def test_models_that_are_only_crossed_are_frozen() -> None:
    plan = toys.plan_of(PAPER)
    assert {o.node: o.frozen for o in plan.ops if o.frozen} == {"judged": ("model",)}
    assert flags(OLD, "frozen") == set()


def test_models_that_no_step_is_for_want_no_gradients() -> None:
    text = toys.REGRESSION.replace("net = network()", "net = network()\n    vgg = network()")
    text = text.replace("distance(y, x)", "distance(f, x)")
    used = toys.plan_of(text + "    f = features(vgg, y)")
    assert (list(used.state), list(used.unchanged), used.untrained) == (["net", "opt"], ["vgg"], ("vgg",))
    trains = toys.plan_of(text + "    f = forward(vgg, y)")
    assert (list(trains.state), list(trains.unchanged), trains.untrained) == (["net", "vgg", "opt"], [], ("vgg",))


def test_training_passes_run_in_the_files_order_before_eval_passes() -> None:
    text = toys.REGRESSION.replace("y = forward", "seen = forward(net, x)\n    w = write(seen)\n    y = forward")
    text = text.replace("distance(y, x)", "distance(y, z)")
    text = text.replace("    loss =", "    noise = double(x)\n    z = forward(net, noise)\n    loss =")
    assert names(toys.plan_of(text).steps)[:6] == ["x", "y", "noise", "z", "seen", "w"]


def test_training_passes_keep_the_files_order_where_another_model_delays_the_first() -> None:
    steps = names(
        toys.plan_of("""
    A = network()
    B = network()
    optA = adam(A)
    optB = adam(B)
    x = batches()
    seen = forward(B, x)
    hard = rounded(seen)
    first = forward(A, hard)
    second = forward(A, x)
    loss = distance(first, second)
    A1 = optimizer_step(loss, A, optA)
    b = forward(B, x)
    b_loss = size(b)
    B1 = optimizer_step(b_loss, B, optB)
    log = log(loss)
""").steps
    )
    assert steps[:6] == ["x", "b", "seen", "hard", "first", "second"]


# cadence

EVERY = "x = count()\ny = double(x)\nz = double(y)\nw = write(z, every={})"


def demand(text: str, id_: str) -> set[frozenset[int]]:
    return set(op(text, id_).demand)


def test_what_only_a_gated_node_needs_is_gated() -> None:
    text = EVERY.format(3) + "\nother = write(y)"
    assert demand(text, "z") == demand(text, "w") == {frozenset({3})}
    assert demand(text, "y") == {frozenset()}


def test_a_value_of_two_cadences_is_made_for_either() -> None:
    assert demand(EVERY.format(3) + "\nother = write(z, every=2)", "y") == {frozenset({2}), frozenset({3})}


def test_what_reads_a_gated_value_runs_only_where_it_exists() -> None:
    text = EMA + "    seen = forward(avg, x)\n"
    assert demand(text + "    w = write(seen, every=3)", "w") == {frozenset({2, 3})}
    for id_ in ("avg", "seen", "w"):
        assert demand(text + "    w = write(seen)", id_) == {frozenset({2})}


@given(st.sets(st.frozensets(st.integers(0, 4), max_size=3), max_size=3), st.integers(0, 30), st.booleans())
def test_a_node_fires_each_nth_step_and_after_the_last(gates: set[frozenset[int]], step: int, last: bool) -> None:
    on = any(0 not in group and all((step + 1) % n == 0 for n in group) for group in gates)
    assert fires(frozenset(gates), step, last) == (bool(gates) if last else on)


# warnings, descriptions


def test_an_output_of_setup_that_reads_what_steps_change_is_warned_of() -> None:
    plan = toys.plan_of(toys.REGRESSION + "    early = show(net)")
    what = "reads 'net' before the first step, though the steps change it"
    fix = "wire it to the changed value, if that is meant"
    assert list(map(str, plan.warnings)) == [f"graph: early.model: {what}; {fix}"]
    assert toys.plan_of(toys.REGRESSION + "    late = show(step)").warnings == ()


def test_two_nodes_that_write_one_file_are_warned_of() -> None:
    @node(output=True)
    def saved(model: Model, filename: OutputName = "a.pt", run_dir: RunDir = toys.HERE) -> None:
        """Saves."""

    types = toys.REGISTRY.with_nodes([saved])
    text = "net = network()\none = saved(net)\nother = saved(net{})"
    (warning,) = compile_plan(toys.graph(text.format(""), types), types).warnings
    what = "'one' writes 'a.pt' too, so that one replaces what the other wrote"
    assert str(warning) == f"graph: other.filename: {what}; give each a name of its own"
    assert compile_plan(toys.graph(text.format(", filename='b.pt'"), types), types).warnings == ()


def test_a_plan_describes_itself() -> None:
    described = describe(toys.plan_of(PAPER + "    w = write(sr, every=5)"))
    steps = {o["node"]: o for o in described["step"]}
    assert steps["judged"] == {
        "node": "judged",
        "type": "forward",
        "every": None,
        "grad": True,
        "training": True,
        "crosses": ["model"],
        "detached": [],
        "retain_graph": False,
    }
    assert {name: o["detached"] for name, o in steps.items() if o["detached"]} == {"fake": ["x"]}  # D1's is not for G
    assert steps["w"]["every"] == [[5]]
    assert {"node": "D1", "input": "optimizer", "value": "optD"} in described["mutations"]
    assert described["state"] == ["G", "D", "optG", "optD"]


def test_a_plan_draws_itself() -> None:
    plan = toys.plan_of(toys.REGRESSION)
    drawn = mermaid(plan)
    number = {o.node: n for n, o in enumerate(plan.ops)}
    assert f"  n{number['net']} ==>|model| n{number['step']}\n" in drawn
    assert f"  n{number['net']} -->|model| n{number['y']}\n" in drawn
    assert len(re.findall("-->|==>", drawn)) == sum(len(o.links) for o in plan.ops)


def test_the_dag_of_a_plan_is_respected() -> None:
    plan = toys.plan_of(K2)
    at = {id_: n for n, id_ in enumerate(names(plan.ops))}
    read = [
        (link.node, id_)
        for id_, entry in plan.wiring.graph.nodes.items()
        for link in entry.inputs.values()
        if isinstance(link, Link)
    ]
    assert read
    assert all(at[a] < at[b] for a, b in read)
