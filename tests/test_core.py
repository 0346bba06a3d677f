"""The binding and the program executor, fed with tables built by hand."""

import ctypes
import hashlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from chainrule import _core

OP = {name: code for code, name in enumerate(_core.op_names())}
TANH = [name for name, _ in _core.activation_rows()].index("tanh")
UPDATE = {name: row for row, (name, _) in enumerate(_core.update_rows())}
STATES = dict(_core.update_rows())
TEMP, PARAM, CONST, SCALARS = range(4)
DTYPES = [np.dtype(t) for t in ("float32", "float64", "int32", "int64", "bool")]


class Tables:
    """The tables of a program, row by row."""

    def __init__(self):
        self.buffers, self.instructions, self.floats, self.bound = [], [], [], {}

    def buffer(self, kind, dtype, shape, extra=0):
        shape = tuple(shape)
        padding = [0] * (4 - len(shape))
        code = DTYPES.index(np.dtype(dtype))
        self.buffers.append([kind, code, len(shape), *shape, *padding, extra])
        return len(self.buffers) - 1

    def temp(self, dtype, *shape):
        return self.buffer(TEMP, dtype, shape)

    def array(self, array, kind=PARAM):
        number = self.buffer(kind, array.dtype, array.shape)
        self.bound[number] = array
        return number

    def add(self, name, outs, ins, ints=(), floats=()):
        def filled(values, n, zero=0):
            return [*values, *[zero] * (n - len(values))]

        self.instructions.append(
            [OP[name], len(outs), *filled(outs, 4), len(ins), *filled(ins, 8), *filled(ints, 8), 0]
        )
        self.floats.append(filled(floats, 4, 0.0))

    def program(self):
        program = _core.Program(
            np.array(self.buffers, np.int64).reshape(-1, 8),
            np.array(self.instructions, np.int64).reshape(-1, 24),
            np.array(self.floats, np.float64).reshape(-1, 4),
        )
        for number, array in self.bound.items():
            program.bind(number, array)
        return program


def run(program, steps=1, sources=(), index=None, first=0, scalars=None, columns=0, outputs=()):
    """Run and return (steps done, results)."""
    results = np.full((steps, columns), -7.0)
    scalars = np.zeros((steps, 0)) if scalars is None else scalars
    done = program.run(steps, tuple(sources), index, first, scalars, results, tuple(outputs), 0)
    return done, results


def hash_of(arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Net:
    """A training step of a tanh network with softmax, and the same in numpy."""

    lr = 0.1

    def __init__(self, sizes, batch, dtype="float32", update="sgd", fused=True, batch_rows=300):
        rng = np.random.default_rng(0)
        pairs = list(itertools.pairwise(sizes))
        self.sizes, self.batch, self.dtype = sizes, batch, dtype
        self.w = [(rng.normal(size=(n, k)) / np.sqrt(k)).astype(dtype) for k, n in pairs]
        self.b = [np.zeros(n, dtype) for _, n in pairs]
        self.state = [[np.zeros_like(p) for _ in range(STATES[update])] for p in self.w + self.b]
        self.x = rng.normal(size=(batch_rows, sizes[0])).astype(dtype)
        self.y = rng.integers(0, sizes[-1], batch_rows)
        self.weight = np.ones(batch_rows, dtype)
        self.tables = self._tables(update, fused)

    @property
    def sources(self):
        return self.x, self.y, self.weight

    @property
    def arrays(self):
        return [*self.w, *self.b, *[s for states in self.state for s in states]]

    def _tables(self, update, fused):
        t, dtype, batch = Tables(), self.dtype, self.batch
        coef = t.buffer(SCALARS, "float64", (9,))
        w, b = [t.array(a) for a in self.w], [t.array(a) for a in self.b]
        state = [[t.array(a) for a in states] for states in self.state]
        x, y = t.temp(dtype, batch, self.sizes[0]), t.temp("int64", batch)
        weight, loss = t.temp(dtype, batch), t.temp(dtype, batch)
        for source, target in enumerate((x, y, weight)):
            t.add("load", [target], [], [source])
        h, last = [x], len(w) - 1
        for layer, n in enumerate(self.sizes[1:]):
            h.append(t.temp(dtype, batch, n))
            t.add("dense", [h[-1]], [h[-2], w[layer], b[layer]], [-1 if layer == last else TANH])
        t.add("softmax_cross_entropy", [loss], [h[-1], y])
        mean = t.temp("float64")
        t.add("weighted_mean", [mean], [loss, weight])
        t.add("result", [], [mean], [0])
        upstream = t.array(np.full(batch, 1 / batch, dtype), CONST)
        delta = t.temp(dtype, batch, self.sizes[-1])
        t.add("dsoftmax_cross_entropy", [delta], [upstream, h[-1], y])
        deltas = {last: delta}
        for layer in range(last, 0, -1):
            below = t.temp(dtype, batch, self.sizes[layer])
            t.add("matmul_dact", [below], [deltas[layer], w[layer], h[layer]], [TANH])
            deltas[layer - 1] = below
        for layer in range(last + 1):
            n, k = self.w[layer].shape
            db, sw, sb = t.temp(dtype, n), state[layer], state[layer + last + 1]
            t.add("sum", [db], [deltas[layer]], [0])
            row = [UPDATE[update]]
            if fused:
                operands = [deltas[layer], h[layer], w[layer], *sw, coef]
                t.add("matmul_update", [w[layer], *sw], operands, row)
            else:
                dw = t.temp(dtype, n, k)
                t.add("matmul", [dw], [deltas[layer], h[layer]], [1, 0])
                t.add("update", [w[layer], *sw], [w[layer], dw, *sw, coef], row)
            t.add("update", [b[layer], *sb], [b[layer], db, *sb, coef], row)
        return t

    def coefficients(self, steps):
        one = [self.lr, 0, 0.9, 0.1, 0.999, 0.001, 1e-8, 1, np.inf]
        return np.tile(np.array(one), (steps, 1))

    def train(self, index, threads=1, parts=1):
        """Run len(index) / batch steps in that many calls; return losses."""
        program, losses = self.tables.program(), []
        for part in np.array_split(index.reshape(-1, self.batch), parts):
            program.begin(threads)
            scalars = self.coefficients(len(part))
            done, result = run(
                program, len(part), self.sources, part.ravel(), scalars=scalars, columns=1
            )
            program.end()
            assert done == len(part)
            losses.append(result)
        return np.concatenate(losses)[:, 0]

    def by_numpy(self, index):
        w, b = [a.astype("f8") for a in self.w], [a.astype("f8") for a in self.b]
        losses = []
        for rows in index.reshape(-1, self.batch):
            h = [self.x[rows].astype("f8")]
            for layer in range(len(w)):
                z = h[-1] @ w[layer].T + b[layer]
                h.append(np.tanh(z) if layer < len(w) - 1 else z)
            p = np.exp(h[-1] - h[-1].max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            at = np.arange(self.batch), self.y[rows]
            losses.append(-np.log(p[at]).mean())
            p[at] -= 1
            delta, gradients = p / self.batch, []
            for layer in range(len(w) - 1, -1, -1):
                gradients.insert(0, (delta.T @ h[layer], delta.sum(0)))
                if layer:
                    delta = (delta @ w[layer]) * (1 - h[layer] ** 2)
            for layer, (dw, db) in enumerate(gradients):
                w[layer] -= self.lr * dw
                b[layer] -= self.lr * db
        return w, b, np.array(losses)


INDEX = np.random.default_rng(3).integers(0, 300, 10 * 37)
SIZES = (33, 40, 17, 3)


@pytest.fixture(params=_core.isas())
def isa(request):
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("fused", [True, False])
def test_training_agrees_with_numpy(isa, dtype, tolerance, fused):
    net = Net(SIZES, 37, dtype, fused=fused)
    w, b, losses = net.by_numpy(INDEX)
    np.testing.assert_allclose(net.train(INDEX), losses, atol=tolerance)
    for got, expected in zip(net.w + net.b, w + b, strict=True):
        np.testing.assert_allclose(got, expected, atol=tolerance)


@pytest.mark.parametrize("update", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_depend_on_nothing_but_the_numbers(dtype, update):
    hashes, before = set(), _core.isa()
    for name in _core.isas():
        _core.set_isa(name)
        for fused in (True, False):
            for threads, parts in [(1, 1), (1, 3), (2, 1), (3, 2), (4, 1), (7, 1)]:
                net = Net(SIZES, 37, dtype, update, fused)
                losses = net.train(INDEX, threads, parts)
                hashes.add(hash_of([losses, *net.arrays]))
    _core.set_isa(before)
    assert len(hashes) == 1


def test_control_another_order_of_rows_gives_other_bits():
    """What the hash test would see if a split changed a sum."""
    a, b = Net(SIZES, 37), Net(SIZES, 37)
    a.train(INDEX)
    b.train(INDEX.reshape(10, 37)[:, ::-1].ravel().copy())
    assert hash_of(a.arrays) != hash_of(b.arrays)


def test_a_step_has_few_barriers_and_weights_in_panels():
    program = Net(SIZES, 37).tables.program()
    program.begin(2)
    stats = program.stats()
    assert stats["panelled"] == 3
    assert stats["threads"] == 2
    assert stats["barriers"] <= 3
    assert Net(SIZES, 37, fused=False).tables.program().stats()["panelled"] == 0


def test_an_index_out_of_range_leaves_the_parameters_alone():
    for threads in (1, 3):
        net, good = Net(SIZES, 37), Net(SIZES, 37)
        good.train(INDEX[: 2 * 37])
        index = INDEX.copy()
        index[2 * 37 + 5] = 300
        program = net.tables.program()
        program.begin(threads)
        with pytest.raises(IndexError, match=r"step 2: load: .* position 5") as caught:
            run(program, 10, net.sources, index, scalars=net.coefficients(10), columns=1)
        assert (caught.value.step, caught.value.position) == (2, 5)
        program.end()
        assert hash_of(net.arrays) == hash_of(good.arrays)


def test_a_label_out_of_range_is_named():
    net = Net(SIZES, 37)
    net.y[INDEX[37 + 3]] = 3
    position = int(np.flatnonzero(net.y[INDEX[:37]] == 3)[0]) if 3 in net.y[INDEX[:37]] else 3
    step = 0 if 3 in net.y[INDEX[:37]] else 1
    program = net.tables.program()
    program.begin(2)
    with pytest.raises(IndexError, match=f"step {step}: softmax_cross_entropy: .* {position}$"):
        run(program, 10, net.sources, INDEX, scalars=net.coefficients(10), columns=1)


def test_stops_after_a_loss_that_is_not_finite_and_when_time_is_up():
    net = Net(SIZES, 37)
    net.x[INDEX[3 * 37]] = np.nan
    program = net.tables.program()
    program.begin(2)
    first = next(s for s in range(10) if INDEX[3 * 37] in INDEX[s * 37 : s * 37 + 37])
    done, losses = run(program, 10, net.sources, INDEX, scalars=net.coefficients(10), columns=1)
    assert done == first + 1
    assert np.isnan(losses[first, 0])
    assert (losses[done:] == -7).all()
    net = Net(SIZES, 37)
    program = net.tables.program()
    program.begin(1)
    results = np.zeros((10, 1))
    scalars = net.coefficients(10)
    assert program.run(10, net.sources, INDEX, 0, scalars, results, (), 1) == 1


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("source", DTYPES, ids=str)
@pytest.mark.parametrize("target", DTYPES, ids=str)
def test_load_casts_and_store_writes(source, target, threads):
    t = Tables()
    x = t.temp(target, 5, 3, 2)
    t.add("load", [x], [], [0])
    t.add("store", [], [x], [0])
    data = (np.arange(20 * 6).reshape(20, 3, 2) % 7).astype(source)
    index = np.array([3, 3, 19, 0, 7, 8, 1, 2, 11, 4])
    out = np.zeros((12, 3, 2), target)
    program = t.program()
    program.begin(threads)
    assert run(program, 2, [data], index, first=2, outputs=[out])[0] == 2
    np.testing.assert_array_equal(out[2:], data[index].astype(target))
    np.testing.assert_array_equal(out[:2], 0)
    run(program, 2, [data[:, ::1][::-1]], None, first=1, outputs=[out])  # rows in any stride
    np.testing.assert_array_equal(out[1:11], data[::-1][1:11].astype(target))


@pytest.mark.parametrize("threads", [1, 4])
def test_temporaries_share_memory_and_scalars_reach_every_thread(threads):
    t = Tables()
    x = t.temp("float32", 64, 20)
    factor, step = t.buffer(SCALARS, "float64", (), 1), t.buffer(SCALARS, "int64", (), 0)
    narrow = t.temp("float32")
    t.add("load", [x], [], [0])
    t.add("cast", [narrow], [factor])
    value = x
    for _ in range(10):
        previous, value = value, t.temp("float32", 64, 20)
        t.add("multiply", [value], [previous, narrow])
    dropped = t.temp("float32", 64, 20)
    t.add("dropout", [dropped], [value, step], [5, 6], [0.5])
    flat = t.temp("float32", 64, 5, 4)
    t.add("reshape", [flat], [dropped])
    turned, columns = t.temp("float32", 5, 64, 4), t.temp("float32", 64, 4)
    t.add("transpose", [turned], [flat], [1, 0, 2])
    t.add("sum", [columns], [turned], [0])
    t.add("store", [], [columns], [0])
    program = t.program()
    program.begin(threads)
    assert program.stats()["temporary_bytes"] < 6 * 64 * 32 * 4
    data = np.random.default_rng(1).normal(size=(128, 20)).astype("float32")
    out = np.zeros((128, 4), "float32")
    run(program, 2, [data], None, scalars=np.array([[1, 2.0], [9, 0.5]]), outputs=[out])
    for s, (number, f) in enumerate([(1, 2.0), (9, 0.5)]):
        x = data[s * 64 : s * 64 + 64] * np.float32(f) ** 10
        y, n = np.empty_like(x), np.array(number)
        _core.run(OP["dropout"], (x, n), (y,), (5, 6), (0.5,), 1)
        z = y.reshape(64, 5, 4).transpose(1, 0, 2).copy()
        expected = np.empty((64, 4), "float32")
        _core.run(OP["sum"], (z,), (expected,), (0,), (), 1)
        np.testing.assert_array_equal(out[s * 64 : s * 64 + 64], expected)


def test_embedding_rows_are_taken_summed_and_updated():
    table0 = np.random.default_rng(4).normal(size=(50, 6))
    hashes = set()
    for threads in (1, 2, 5):
        table, t = table0.copy(), Tables()
        w, coef = t.array(table), t.buffer(SCALARS, "float64", (9,))
        ids, rows = t.temp("int64", 8, 3), t.temp("int64", 24)
        taken, flat = t.temp("float64", 8, 3, 6), t.temp("int64", 24)
        g, sums = t.temp("float64", 24, 6), t.temp("float64", 24, 6)
        t.add("load", [ids], [], [0])
        t.add("take", [taken], [w, ids])
        t.add("reshape", [flat], [ids])
        t.add("reshape", [g], [taken])
        t.add("row_sums", [rows, sums], [flat, g], [50])
        t.add("update_rows", [w], [rows, sums, w, coef], [UPDATE["sgd"]])
        program = t.program()
        program.begin(threads)
        data = np.random.default_rng(5).integers(0, 50, (40, 3))
        coefs = np.tile([0.01, 0, 0, 0, 0, 0, 0, 0, np.inf], (5, 1))
        assert run(program, 5, [data], None, scalars=coefs)[0] == 5
        program.end()
        expected = table0.copy()
        for s in range(5):
            gradient = np.zeros_like(expected)
            batch = data[s * 8 : s * 8 + 8].ravel()
            np.add.at(gradient, batch, expected[batch])
            expected -= 0.01 * gradient
        np.testing.assert_allclose(table, expected, rtol=1e-12)
        hashes.add(hash_of([table]))
        data[9, 1] = 50
        program.begin(threads)
        with pytest.raises(IndexError, match=r"step 1: take: .* position 4"):
            run(program, 5, [data], None, scalars=coefs)
        program.end()
    assert len(hashes) == 1


# --- one instruction ------------------------------------------------------------------------------


def eager(name, ins, shape, dtype, ints=(), floats=(), threads=1):
    out = np.empty(shape, dtype)
    _core.run(OP[name], tuple(ins), (out,), tuple(ints), tuple(floats), threads)
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_copies(dtype, threads):
    x = (np.random.default_rng(0).integers(0, 9, (5, 4, 3, 2))).astype(dtype)
    for axes in [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1)]:
        expected = x.transpose(axes)
        got = eager("transpose", [x], expected.shape, dtype, axes, threads=threads)
        np.testing.assert_array_equal(got, expected)
    for shape in [(120,), (5, 24), (20, 6), (2, 60), (1, 120)]:
        got = eager("reshape", [x], shape, dtype, threads=threads)
        np.testing.assert_array_equal(got, x.reshape(shape))
    for axis in range(4):
        n = x.shape[axis]
        for start, stop, step in [(0, n, 1), (1, n, 2), (n - 1, -1, -1), (n - 1, 0, -2), (1, 1, 1)]:
            picked = np.take(x, np.arange(start, stop, step), axis)
            ints = (axis, start, stop, step)
            got = eager("slice", [x], picked.shape, dtype, ints, threads=threads)
            np.testing.assert_array_equal(got, picked)
            spread = np.zeros_like(x)
            spread[(slice(None),) * axis + (np.arange(start, stop, step),)] = picked
            got = eager("unslice", [picked], x.shape, dtype, (*ints, n), threads=threads)
            np.testing.assert_array_equal(got, spread)
        expected = np.concatenate([x, x, x], axis)
        got = eager("concatenate", [x, x, x], expected.shape, dtype, (axis,), threads=threads)
        np.testing.assert_array_equal(got, expected)


def test_elementwise_takes_any_strides():
    x = np.random.default_rng(0).normal(size=(6, 8, 10))
    a, b = x[::2, ::-1, 1::3], x.transpose(2, 1, 0)[:3, :, :3].transpose(2, 1, 0)
    out = np.empty((3, 8, 3))
    _core.run(OP["add"], (a, b), (out,), (), (), 2)
    np.testing.assert_array_equal(out, a + b)
    np.testing.assert_array_equal(eager("add", [a, b[0]], (3, 8, 3), "f8"), a + b[0])


def test_large_products_are_shared_out():
    a, b = np.random.default_rng(0).normal(size=(2, 300, 300)).astype("float32")
    one = eager("matmul", [a, b], (300, 300), "float32", (0, 1), threads=1)
    np.testing.assert_allclose(one, a @ b.T, atol=1e-3)
    for threads in (0, 2, 5):
        got = eager("matmul", [a, b], (300, 300), "float32", (0, 1), threads=threads)
        np.testing.assert_array_equal(got, one)


X = np.zeros((4, 3), "float32")


@pytest.mark.parametrize(
    ("name", "ins", "out", "error", "message"),
    [
        ("add", [X, X[:, :2]], X, ValueError, "add: input 1: expected size 3 on axis 1, got 2"),
        ("add", [X], X, ValueError, "add: expected input 1"),
        ("add", [X, X.astype("f8")], X, TypeError, "add: input 1: expected float32, got float64"),
        ("exp", [X.astype("i4")], X, TypeError, "expected float32 or float64, got int32"),
        ("matmul", [X, X], X, ValueError, "matmul: input 1: expected size 3 on axis 0, got 4"),
        ("softmax", [X.T], X.T.copy(), ValueError, "contiguous axes after the first"),
        ("take", [X, X[:, 0].copy()], X, TypeError, "take: input 1: expected int32 or int64"),
        ("take", [X, np.array([0, 4])], X[:2].copy(), IndexError, "position 1"),
        ("take", [X, np.array([-1, 0])], X[:2].copy(), IndexError, "position 0"),
        ("sum", [X], X, ValueError, "sum: output 0: expected 1 axes, got 2"),
        ("load", [], X, ValueError, "not one to run by itself"),
        ("add", [X.astype(">f4"), X], X, TypeError, "format"),
        ("add", [X.astype("f2"), X], X, TypeError, "format"),
    ],
)
def test_operands_that_do_not_fit_are_refused(name, ins, out, error, message):
    with pytest.raises(error, match=message):
        _core.run(OP[name], tuple(ins), (out,), (0,), (), 1)


def test_memory_that_does_not_fit_is_refused():
    raw = np.zeros(4 * 12 + 1, "u1")
    askew = raw[1:].view("float32").reshape(4, 3)
    with pytest.raises(ValueError, match="aligned"):
        _core.run(OP["add"], (askew, X), (X.copy(),), (), (), 1)
    with pytest.raises(ValueError, match="read-only"):
        _core.run(OP["add"], (X, X), (np.broadcast_to(X, (4, 3)),), (), (), 1)
    with pytest.raises(ValueError, match="at most"):
        _core.run(OP["add"], (X[None, None, None], X), (X[None, None, None],), (), (), 1)
    w, g = X.copy(), X.copy()
    coef = np.array([1, 0, 0, 0, 0, 0, 0, 0, np.inf])
    with pytest.raises(ValueError, match="update: output 0: expected to be input 0"):
        _core.run(OP["update"], (w, g, coef), (w.copy(),), (UPDATE["sgd"],), (), 1)


# --- tables ---------------------------------------------------------------------------------------


def valid():
    return Net((4, 3, 2), 5, update="adam").tables


def test_tables_are_read_completely():
    """Any one number of the tables may be anything: an error, or a program that runs."""
    rng = np.random.default_rng(0)
    odd = [-1, 0, 1, 2, 3, 5, 9, 76, 1000, 2**31, 2**40, 2**62, -(2**63), 2**63 - 1]
    accepted = 0
    for _ in range(3000):
        t = valid()
        table = t.buffers if rng.random() < 0.4 else t.instructions
        row = table[rng.integers(len(table))]
        row[rng.integers(len(row))] = odd[rng.integers(len(odd))]
        try:
            program = t.program()
            program.begin(int(rng.integers(1, 4)))
            net = Net((4, 3, 2), 5)
            run(program, 2, net.sources, None, scalars=np.ones((2, 40)), columns=8)
        except (ValueError, TypeError, IndexError, MemoryError, RuntimeError):
            continue
        accepted += 1
    assert accepted > 50


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.add("exp", [t.temp("f4", 3)], [t.temp("f4", 3)]), "not written yet"),
        (lambda t: t.add("nothing", [], []), None),
        (lambda t: t.add("load", [t.temp("f4", 6, 2)], [], [0]), "batch of instruction"),
        (lambda t: t.add("copy", [0], [1]), "not to be written"),
        (lambda t: t.instructions[0].__setitem__(0, 999), "op of instruction 0"),
        (lambda t: t.buffers[1].__setitem__(2, 5), "axes of buffer 1"),
    ],
)
def test_tables_that_make_no_sense_are_refused(spoil, message):
    t = valid()
    if message is None:
        with pytest.raises(KeyError):
            spoil(t)
        return
    spoil(t)
    with pytest.raises(ValueError, match=message):
        t.program()


def test_calls_out_of_turn_are_refused():
    net = Net(SIZES, 37)
    program = net.tables.program()
    with pytest.raises(RuntimeError, match="begin"):
        run(program, 1, net.sources, INDEX, scalars=net.coefficients(1), columns=1)
    program.begin(1)
    with pytest.raises(RuntimeError, match="begun"):
        program.begin(1)
    with pytest.raises(RuntimeError, match="begun"):
        program.bind(1, net.w[0])
    program.end()
    program.end()
    with pytest.raises(ValueError, match="C-contiguous"):
        program.bind(1, np.asfortranarray(net.w[0]))
    with pytest.raises(ValueError, match="read-only"):
        program.bind(1, np.broadcast_to(net.w[0], net.w[0].shape))
    with pytest.raises(TypeError, match="element type"):
        program.bind(1, net.w[0].astype("f8"))
    with pytest.raises(ValueError, match="another shape"):
        program.bind(1, net.w[1])
    program.bind(2, net.w[1].copy())
    program.begin(1)
    for arguments, message in [
        ({"steps": 11, "index": INDEX}, "index: expected"),
        ({"sources": net.sources[:2]}, "expected 3 sources"),
        ({"sources": (net.x[:, :-1].copy(), net.y, net.weight)}, "rows of 33 elements"),
        ({"scalars": np.zeros((1, 8))}, "expected 9 columns of scalars"),
        ({"columns": 0}, "expected 1 columns of results"),
    ]:
        steps = arguments.get("steps", 1)
        defaults = {
            "sources": net.sources,
            "index": INDEX,
            "scalars": net.coefficients(steps),
            "columns": 1,
        }
        with pytest.raises(ValueError, match=message):
            run(program, **{"steps": 1, **defaults, **arguments})


def test_written_memory_is_not_shared():
    net = Net((4, 4, 4), 5)
    program = net.tables.program()
    program.bind(2, net.w[0])
    with pytest.raises(ValueError, match="shares memory"):
        program.begin(1)


# --- surroundings ---------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_still_trains():
    parent = Net(SIZES, 37)
    parent.train(INDEX, threads=2)

    def child(queue):
        net = Net(SIZES, 37)
        net.train(INDEX, threads=2)
        queue.put(hash_of(net.arrays))

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    try:
        assert queue.get(timeout=60) == hash_of(parent.arrays)
    finally:
        process.join(10)
        process.kill()


def test_programs_run_side_by_side():
    expected = Net(SIZES, 37)
    expected.train(INDEX)
    nets = [Net(SIZES, 37) for _ in range(6)]
    workers = [threading.Thread(target=net.train, args=(INDEX, 2)) for net in nets]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {hash_of(net.arrays) for net in nets} == {hash_of(expected.arrays)}


@pytest.mark.parametrize("threads", [1, 2])
def test_the_rounding_mode_of_the_caller_is_left_and_not_used(threads):
    expected = Net(SIZES, 37)
    expected.train(INDEX, threads)
    libm = ctypes.CDLL("libm.so.6")
    net, upward = Net(SIZES, 37), 0x800 if os.uname().machine == "x86_64" else 0x400000
    program = net.tables.program()
    scalars, results = net.coefficients(10), np.zeros((10, 1))
    assert libm.fesetround(upward) == 0
    try:
        program.begin(threads)
        program.run(10, net.sources, INDEX, 0, scalars, results, (), 0)
        program.end()
        left = libm.fegetround()
    finally:
        libm.fesetround(0)
    assert left == upward
    assert hash_of(net.arrays) == hash_of(expected.arrays)


def test_isas():
    assert _core.isas()[0] == "portable"
    assert _core.isa() in _core.isas()
    with pytest.raises(ValueError, match="expected one of portable"):
        _core.set_isa("abacus")


def test_fewer_threads_than_planned_do_all_the_work() -> None:
    """OpenMP may give a smaller team than was asked for."""
    script = (
        "import numpy as np, chainrule as cr\n"
        "rng = np.random.default_rng(0)\n"
        "a, b = (cr.tensor(rng.normal(size=s).astype('f4')) for s in ((250, 1024), (1024, 1600)))\n"
        "with cr.threads(4): many = (a @ b).data\n"
        "with cr.threads(1): one = (a @ b).data\n"
        "assert np.array_equal(many, one)\n"
    )
    for limit in ("1", "2"):
        environment = {**os.environ, "OMP_THREAD_LIMIT": limit}
        subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
