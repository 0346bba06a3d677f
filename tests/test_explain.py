"""Explanations and drawings: what they say is what was executed."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import chainrule as cr
from chainrule import anatomy, graph
from chainrule.lessons import latex

RNG = np.random.default_rng(4)


def lecture():
    W = cr.parameter(RNG.normal(size=(3, 5)))
    b = cr.parameter(RNG.normal(size=3))
    u = cr.parameter(RNG.normal(size=3))
    x = cr.tensor(RNG.normal(size=5))
    z = W @ x + b
    h = cr.tanh(z)
    s = u @ h
    return s, {"W": W, "b": b, "u": u, "x": x, "z": z, "h": h, "s": s}


def network():
    X, Y = cr.tensor(RNG.normal(size=(4, 3))), cr.tensor([0, 1, 1, 0])
    W, b = cr.parameter(RNG.normal(size=(5, 3))), cr.parameter(np.zeros(5))
    V, c = cr.parameter(RNG.normal(size=(2, 5))), cr.parameter(np.zeros(2))
    scores = cr.dense(cr.relu(X @ W.T + b), V, c, "tanh")
    loss = cr.losses.SoftmaxCrossEntropy()(scores, Y)
    return cr.mean(loss) + 0.1 * (W * W).sum() + cr.sum(V, axis=0).max(), {"W": W, "V": V}


def scalars(n=56):
    """A graph of n ops on numbers with many branches."""
    rng = np.random.default_rng(3)
    nodes = [cr.tensor(float(v)) for v in rng.uniform(-1, 1, 4)]
    ops = [lambda a, b: a + b, lambda a, b: a * b, cr.maximum, lambda a, b: cr.tanh(a)]
    for _ in range(n - 3):
        a, b = (nodes[max(0, len(nodes) - 1 - int(rng.integers(0, 9)))] for _ in range(2))
        nodes.append(ops[int(rng.integers(0, 4))](a, b))
    return nodes[-1] + nodes[-2] * nodes[-3] + nodes[-4], {}


GRAPHS = {"lecture": lecture, "network": network, "scalars": scalars}


def test_the_lecture_is_told_with_the_callers_names():
    s, names = lecture()
    W, b, u, x, z, h = (names[k] for k in ("W", "b", "u", "x", "z", "h"))
    told = cr.explain(s)
    assert [c.equation for c in told.cards] == ["s = uᵀ h", "h = tanh(z)", "z = v1 + b", "v1 = W x"]
    locals_ = {share.name: share.part.local for c in told.cards for share in c.shares}
    assert locals_ == {
        "u": "hᵀ", "h": "uᵀ", "z": "diag(1 − h²)", "v1": "I", "b": "I", "W": "I ⊗ xᵀ", "x": "W"
    }  # fmt: skip
    shares = {share.name: share for c in told.cards for share in c.shares}
    delta = u.data * (1 - h.data**2)
    np.testing.assert_allclose(
        shares["W"].gradient, np.outer(delta, x.data), rtol=1e-13, atol=1e-15
    )
    np.testing.assert_array_equal(shares["x"].jacobian, W.data)
    np.testing.assert_array_equal(shares["b"].jacobian, np.eye(3))
    assert "δ = ∂s/∂z is computed here, once, and reused for ∂s/∂W, ∂s/∂x, ∂s/∂b" in str(told)
    assert "z = " in str(told) and z.grad is None  # the explanation leaves .grad alone
    assert b.grad is None


@pytest.mark.parametrize("which", GRAPHS)
def test_numbers_agree_with_a_real_backward_pass(which):
    s, names = GRAPHS[which]()
    told = cr.explain(s, **names)
    with anatomy.counting() as counter:
        s.backward()
    assert told.backward_flops == counter.flops
    for value in told._anatomy.values:
        if value.gradient is not None:
            np.testing.assert_array_equal(value.gradient, value.tensor.grad)
    for card in told.cards:
        for share in card.shares:
            if share.gap is not None:
                assert share.gap <= 1e-12 * max(1.0, np.abs(share.gradient).max())
    # Each local gradient is evaluated once: one for each edge of the graph that carries one.
    edges = sum(
        t.requires_grad for node in anatomy._nodes(s) for t in node._inputs if node.requires_grad
    )
    unneeded = sum(
        1 for n in anatomy._nodes(s) for t in n._inputs
        if n.requires_grad and n._op.name == "weighted_mean" and t is n._inputs[1]
    )  # fmt: skip
    assert told._anatomy.evaluated == edges - unneeded


@pytest.mark.parametrize("which", ["lecture", "network"])
def test_forward_flops_are_those_of_a_forward_pass(which):
    with anatomy.counting() as counter:
        s, _ = GRAPHS[which]()
    assert cr.explain(s).forward_flops == counter.flops


@pytest.mark.parametrize("which", ["lecture", "network"])
def test_backward_costs_at_most_three_times_forward(which):
    told = cr.explain(GRAPHS[which]()[0])
    assert told.backward_flops <= 3 * told.forward_flops


def test_roles_and_branches_are_told():
    x, y, z = cr.tensor(1.0), cr.tensor(2.0), cr.tensor(0.0)
    f = (x + y) * cr.maximum(y, z)
    text = str(cr.explain(f))
    for word in ("distributes", "routes", "switches", "y branches into v1, v2"):
        assert word in text
    assert "∂f/∂y = 3" in text and "∂f/∂y = 2" in text and "summed: 5" in text
    assert x.shape == y.shape == z.shape == ()


def test_names_come_from_arguments_then_variables_then_tensors():
    inner = cr.parameter(2.0, name="own")
    mine = inner * 3.0
    equation = cr.explain(mine, given=inner).cards[0].equation
    assert equation == "mine = given · 3"
    assert cr.explain(inner * 3.0).cards[0].equation == "v1 = inner · 3"
    with pytest.raises(ValueError, match="expected a Tensor"):
        cr.explain(mine, x=3.0)


@pytest.mark.parametrize("what", [cr.explain, cr.draw])
def test_bad_roots(what):
    with pytest.raises(ValueError, match="scalar"):
        what(cr.tensor([1.0, 2.0]) * 2.0)
    with pytest.raises(TypeError, match="float"):
        what(cr.tensor(3))
    with pytest.raises(ValueError, match="Tensor"):
        what(3.0)


def test_large_arrays_are_summarised():
    W, x = cr.parameter(np.ones((200, 300))), cr.tensor(np.ones(300))
    text = str(cr.explain((W @ x).sum()))
    assert "200×300: from 1 to 1" in text
    assert len(text) < 4000


def test_the_page_is_self_contained_and_whole(tmp_path):
    s, names = lecture()
    told = cr.explain(s, **names)
    told.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r"(src|href)=|https?://(?!www\.w3\.org/2000/svg)", page)
    assert page.count('"pass": "forward"') == 4 and page.count('"pass": "backward"') == 4
    assert 'type="range"' in page and "prefers-color-scheme" in page
    told.save(tmp_path / "page.tex")
    told.save(tmp_path / "page.txt")
    with pytest.raises(ValueError, match="ends in"):
        told.save(tmp_path / "page.pdf")
    assert "<iframe" in told._repr_html_()


def test_names_cannot_break_the_page():
    anonymous = [cr.parameter(1.0, name="</script><b>")]
    page = cr.explain(anonymous[0] * 2.0).to_html()
    assert page.count("</script>") == 1 and "<b></" not in page


def test_latex():
    s, names = lecture()
    text = cr.explain(s, **names).to_latex()
    assert "h &= \\tanh (z)" in text and "u^{\\top} h" in text
    assert text.count("\\begin{align*}") == text.count("\\end{align*}") == 5
    assert latex("v12 + x_1 ⊙ 2") == "v_{12} + \\mathrm{x\\_1} \\odot  2"
    assert not re.search(r"[ᵀ⊙⊗∂Σ²−]", re.sub(r"%.*", "", text))


# -- drawings --------------------------------------------------------------------------------------


def _boxes(svg):
    """Rectangles of nodes, and of texts with the width that a monospaced face would take."""
    root = ET.fromstring(svg)
    ns = "{http://www.w3.org/2000/svg}"
    nodes = [
        tuple(float(r.get(k)) for k in ("x", "y", "width", "height"))
        for g in root.iter(ns + "g")
        for r in g.iter(ns + "rect")
    ]
    texts = []
    for t in root.findall(ns + "text"):
        width = 0.62 * 11 * len(t.text)
        texts.append((float(t.get("x")) - width / 2, float(t.get("y")) - 9, width, 11))
    return nodes, texts


def _apart(a, b):
    return a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0] or a[1] + a[3] <= b[1] or b[1] + b[3] <= a[1]


@pytest.mark.parametrize("which", GRAPHS)
def test_nothing_overlaps(which):
    s, names = GRAPHS[which]()
    drawing = cr.draw(s, **names)
    nodes, texts = _boxes(drawing.svg)
    boxes = nodes + texts
    for i, a in enumerate(boxes):
        assert a[0] >= 0 and a[1] >= 0
        assert a[0] + a[2] <= drawing.width and a[1] + a[3] <= drawing.height
        for b in boxes[i + 1 :]:
            assert _apart(a, b), (a, b)


def test_no_wire_passes_through_a_node_or_a_label():
    drawing = cr.draw(scalars()[0])
    nodes, texts = _boxes(drawing.svg)
    for path in re.findall(r'class="wire"[^>]* d="([^"]*)"', drawing.svg):
        numbers = [float(v) for v in re.findall(r"-?[\d.]+", path)]
        if "C" in path:
            p = np.array(numbers).reshape(4, 2)
            t = np.linspace(0.0, 1.0, 60)[:, None]
            points = (
                (1 - t) ** 3 * p[0] + 3 * (1 - t) ** 2 * t * p[1]
                + 3 * (1 - t) * t**2 * p[2] + t**3 * p[3]
            )  # fmt: skip
        else:
            x0, y, x1 = numbers
            points = np.stack([np.linspace(x0, x1, 60), np.full(60, y)], axis=1)
        for x, y, w, h in nodes + texts:
            inside = (
                (points[:, 0] > x + 1) & (points[:, 0] < x + w - 1)
                & (points[:, 1] > y + 1) & (points[:, 1] < y + h - 1)
            )  # fmt: skip
            assert not inside.any(), (path, (x, y, w, h))


def test_a_drawing_has_names_values_gradients_and_both_schemes(tmp_path):
    x, y, z = cr.tensor(1.0), cr.tensor(2.0), cr.tensor(0.0)
    f = (x + y) * cr.maximum(y, z)
    drawing = cr.draw(f)
    root = ET.fromstring(drawing._repr_svg_())
    text = "".join(root.itertext())
    assert "computation graph of f" in text and "prefers-color-scheme:dark" in text
    kinds = [g.get("class") for g in root.iter("{http://www.w3.org/2000/svg}g")]
    assert kinds.count("op") == 3 and kinds.count("source") == 3
    gradients = re.findall(r'class="gradient"[^>]*>([^<]*)<', drawing.svg)
    assert sorted(gradients) == sorted(["Σ 5", "2", "2", "3", "0", "2", "3", "1"])
    drawing.save(tmp_path / "f.svg")
    with pytest.raises(ValueError, match="SVG"):
        drawing.save(tmp_path / "f.png")
    assert x.grad is None and y.grad is None and z.grad is None


def test_a_graph_too_large_for_a_picture_is_refused():
    y = cr.tensor(1.0)
    for _ in range(500):
        y = y + 1.0
    with pytest.raises(ValueError, match="500 ops"):
        cr.draw(y)


def test_constants_carry_no_gradient():
    drawing = cr.draw(cr.tensor(2.0, name="t") * 3.0)
    assert 'class="source constant"' in drawing.svg
    assert len(re.findall(r'class="gradient"', drawing.svg)) == 2  # of t, and the 1 at the root


def test_every_op_of_the_table_can_be_told():
    """Whatever the lessons lack falls back to a plain telling."""
    x = cr.tensor(np.abs(RNG.normal(size=(3, 4))) + 0.1)
    for name in ("exp", "softmax", "logsumexp", "max", "var", "gelu", "transpose", "log_softmax"):
        y = getattr(cr, name)(x)
        told = cr.explain((y * y).sum() if y.shape else y * y)
        assert str(told) and told.to_html() and told.to_latex()
    for f in (
        lambda: cr.take(x, [0, 0, 2]).sum(),
        lambda: x[1:, ::2].sum(),
        lambda: cr.concatenate([x, x * 2.0]).sum(),
        lambda: cr.where(x.data > 1, x, x * x).sum(),
        lambda: (x.reshape(2, 6) @ x.reshape(6, 2)).sum(),
        lambda: cr.clip(x, 0.2, 1.0).sum() ** 1.5,
    ):
        told = cr.explain(f())
        assert all(s.gap is None or s.gap < 1e-12 for c in told.cards for s in c.shares)
        assert str(told) and told.to_html() and told.to_latex()


def test_a_traced_model_is_refused():
    with graph.tracing():
        y = cr.tensor(2.0) * 2.0
        with pytest.raises(ValueError, match="traced"):
            cr.explain(y)
