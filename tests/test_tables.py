"""Tables, losses of one's own and what goes wrong with them."""

import json

import numpy as np
import pytest
from conftest import table_data, weight_hash

import chainrule as cr
from chainrule import graph


class Mixed(cr.nn.Module):
    """Numbers and a category."""

    def __init__(self):
        self.city = cr.nn.Embedding(4, 3)
        self.body = cr.nn.Sequential(cr.nn.Dense(5, 16, "tanh"), cr.nn.Dense(16, 1))

    def forward(self, x):
        return self.body(cr.concatenate([x["numbers"], self.city(x["city"])], axis=1))


def mixed_data(n=400):
    rng = np.random.default_rng(2)
    city = rng.integers(0, 4, n)
    numbers = rng.normal(size=(n, 2))
    return numbers, city, np.array([3.0, -2.0, 0.5, 0.0])[city] + numbers @ [1.0, -1.0]


def test_a_category_beside_numbers_with_early_stopping():
    numbers, city, y = mixed_data()
    trainer = cr.Trainer(Mixed(), cr.losses.MeanSquaredError(), cr.optim.Adam(0.02), seed=1)
    stop = cr.callbacks.EarlyStopping(patience=5)
    history = trainer.fit(
        {"numbers": numbers, "city": city}, y, epochs=60, batch_size=32, validation=0.25,
        callbacks=[stop],
    )  # fmt: skip
    assert min(history["val_loss"]) < 0.05 * y.var()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_go_by_their_columns(library):
    frames = pytest.importorskip(library)
    numbers, city, y = mixed_data()
    names = ["a", "b", "c", "d", "e"]
    cities = [names[i] for i in city]
    columns = {"age": numbers[:, 0], "fare": numbers[:, 1], "flag": city > 1, "city": cities}
    frame = frames.DataFrame(columns)

    def run(x, y):
        trainer = cr.Trainer(Mixed(), cr.losses.MeanSquaredError(), cr.optim.Adam(0.02), seed=1)
        trainer.fit(x, y, epochs=2, batch_size=32, validation=0.25)
        return trainer.predict(x)

    series = frames.Series(city)
    target = frames.Series(y)
    ours = run({"numbers": frame[["age", "fare"]], "city": series}, target)
    np.testing.assert_array_equal(ours, run({"numbers": numbers, "city": city}, y))

    dense = cr.Trainer(cr.nn.Dense(3, 1), cr.losses.MeanSquaredError(), cr.optim.SGD(0.1), seed=1)
    assert dense.predict(frame[["age", "fare", "flag"]]).shape == (400, 1)
    with pytest.raises(cr.ChainruleError, match=r"x: column 'city': .* with an Embedding"):
        dense.predict(frame[["age", "fare", "city"]])
    columns["fare"] = np.where(np.arange(400) == 7, np.nan, numbers[:, 1])
    with pytest.raises(cr.ChainruleError, match=r"x: row 7 .* finite \(column 'fare'\)"):
        dense.predict(frames.DataFrame(columns)[["age", "fare", "flag"]])


def test_a_sparse_matrix_is_refused_with_the_way_out():
    sparse = pytest.importorskip("scipy.sparse")
    trainer = cr.Trainer(cr.nn.Dense(3, 1), cr.losses.MeanSquaredError(), cr.optim.SGD(0.1))
    with pytest.raises(cr.ChainruleError, match=r"x: a sparse matrix .*x\.toarray\(\)"):
        trainer.predict(sparse.eye(3).tocsr())


def test_metrics_of_scikit_learn_work():
    metrics = pytest.importorskip("sklearn.metrics")
    numbers, city, y = mixed_data()
    trainer = cr.Trainer(Mixed(), cr.losses.MeanSquaredError(), cr.optim.Adam(0.02), seed=1)
    x = {"numbers": numbers, "city": city}
    trainer.fit(x, y, epochs=20, batch_size=32)
    scores = trainer.evaluate(x, y, metrics=[metrics.r2_score, metrics.mean_squared_error])
    assert scores["mean_squared_error"] == pytest.approx(scores["loss"], rel=1e-5)
    assert scores["r2_score"] == pytest.approx(1.0 - scores["loss"] / y.var(), rel=1e-5)


# -- losses of one's own -------------------------------------------------------------------------

# Each op of the public list, as a function of scores z (batch, 5) and positive p of that shape.
TRACED = {
    "exp": lambda z, p: cr.exp(z * 0.1),
    "log": lambda z, p: cr.log(p),
    "log1p": lambda z, p: cr.log1p(p),
    "expm1": lambda z, p: cr.expm1(z * 0.1),
    "sqrt": lambda z, p: cr.sqrt(p),
    "square": lambda z, p: cr.square(z),
    "abs": lambda z, p: cr.abs(z),
    "erf": lambda z, p: cr.erf(z),
    **{
        name: (lambda f: lambda z, p: f(z))(getattr(cr, name))
        for name in (
            "tanh", "sigmoid", "hard_tanh", "relu", "leaky_relu", "elu", "softplus", "swish",
            "gelu", "softmax", "log_softmax",
        )
    },
    "logsumexp": lambda z, p: cr.logsumexp(z, axis=1),
    "maximum": lambda z, p: cr.maximum(z, 0.1),
    "minimum": lambda z, p: cr.minimum(z, p),
    "clip": lambda z, p: cr.clip(z, -0.5, 0.5),
    "where": lambda z, p: cr.where(z > 0.0, z * 2.0, p),
    "sum": lambda z, p: cr.sum(z, axis=1),
    "mean": lambda z, p: cr.mean(z * z, axis=1),
    "var": lambda z, p: cr.var(z, axis=1),
    "max": lambda z, p: cr.max(z, axis=1),
    "reshape": lambda z, p: z.reshape(-1, 5, 1)[:, 2, 0],
    "transpose": lambda z, p: (cr.transpose(z) * np.float32(2.0)).T,
    "concatenate": lambda z, p: cr.concatenate([z, p], axis=1),
    "stack": lambda z, p: cr.stack([z, p], axis=1),
    "split": lambda z, p: cr.split(z, [2], axis=1)[1] * 3.0,
    "take": lambda z, p: cr.take(z, np.array([0, 3, 3]), axis=1),
    "take_along_axis": lambda z, p: cr.take_along_axis(
        z, np.arange(len(z) * 2).reshape(-1, 2) % 5, axis=1
    ),
    "stop_gradient": lambda z, p: cr.stop_gradient(z) * z,
    "dense": lambda z, p: cr.dense(z, np.ones((3, 5), "float32"), np.ones(3, "float32"), "tanh"),
    "arithmetic": lambda z, p: (z + p - 2.0 * z) / p - (-z),
    "power": lambda z, p: z**2 + z**3 + p**0.5 + p**1.7,
    "matmul": lambda z, p: z @ np.ones((5, 2), "float32"),
    "index": lambda z, p: z[:, 1:4:2] * z[:, 0:1],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TRACED))
def test_an_op_in_a_traced_loss_has_the_bits_of_the_eager_one(name):
    x, y = table_data(32)

    def loss(z, t):
        value = cr.square(TRACED[name](z, cr.square(z) + 0.5))
        return cr.mean(value.reshape(32, -1), axis=1) + t * 0.0

    def model():
        return cr.nn.Sequential(cr.nn.Dense(9, 7, "tanh"), cr.nn.Dense(7, 5)).init(3)

    compiled, eager = model(), model()
    trainer = cr.Trainer(compiled, loss, cr.optim.Adam(0.01), seed=3)
    rule = cr.optim.Adam(0.01)
    for _ in range(3):
        trainer.step(x, y.astype("float32"))
        losses = loss(eager(x), cr.tensor(y.astype("float32")))
        ones = graph.Tensor(np.ones(32, losses.dtype))
        graph.apply("weighted_mean", (losses, ones)).backward()
        rule.step(eager)
    assert weight_hash(compiled) == weight_hash(eager)


class TwoHeads(cr.nn.Module):
    def __init__(self):
        self.a, self.b = cr.nn.Dense(9, 5), cr.nn.Dense(9, 1)

    def forward(self, x):
        return {"class": self.a(x), "value": self.b(x)}


CE, MSE = cr.losses.SoftmaxCrossEntropy, cr.losses.MeanSquaredError


@pytest.mark.parametrize(
    ("model", "loss", "y", "message"),
    [
        (lambda: cr.nn.Dense(9, 5), CE(), "one_hot", r"argmax\(axis=1\)"),
        (lambda: cr.nn.Dense(9, 5), CE(), "one_hot_int", r"argmax\(axis=1\)"),
        (lambda: cr.nn.Dense(9, 5), CE(), "floats", r"y\.astype\(int\)"),
        (lambda: cr.nn.Dense(9, 5), CE(), "column", r"use y\[:, 0\]"),
        (lambda: cr.nn.Sequential(cr.nn.Dense(9, 5)), MSE(), "labels", r"Dense '0'.*SoftmaxCross"),
        (lambda: cr.nn.Dense(9, 3), MSE(), "one_hot", "width should be 5"),
        (TwoHeads, MSE(), "floats", "a dict with 'class', 'value'"),
        (TwoHeads, lambda o, t: MSE()(o["v"], t), "floats", "outputs: 'v' was asked for"),
        (TwoHeads, lambda o, t: MSE()(o["value"], t["v"]), "dict", "y: 'v' was asked for"),
        (TwoHeads, lambda o, t: MSE()(o["value"], t), "floats", "parameter 'a.weight'"),
        (lambda: cr.nn.Dense(9, 1), lambda o, t: (MSE()(o, t), {"k": 1.0}), "floats", "'k' is flo"),
        (lambda: cr.nn.Dense(9, 1), lambda o, t: (o, t), "floats", "a dict of values to log"),
        (lambda: cr.nn.Dense(9, 1), lambda o, t: np.linalg.norm(o), "floats", "no op for Tensors"),
        (lambda: cr.nn.Dense(9, 2), cr.losses.GaussianNLL(), "floats", "two outputs"),
    ],
)
def test_outputs_and_targets_that_do_not_fit_are_named(model, loss, y, message):
    x, labels = table_data(40)
    one_hot = np.eye(5, dtype="float32")[labels]
    targets = {
        "labels": labels, "floats": labels * 1.0, "one_hot": one_hot, "column": labels[:, None],
        "one_hot_int": one_hot.astype(int), "dict": {"value": labels * 1.0},
    }  # fmt: skip
    trainer = cr.Trainer(model(), loss, cr.optim.SGD(0.1), seed=1)
    with pytest.raises((cr.ChainruleError, TypeError), match=message):
        trainer.step(x, targets[y])


# -- optimizers ----------------------------------------------------------------------------------


def test_groups_have_options_of_their_own():
    x, y = table_data(32)

    def train(optimizer):
        model = cr.nn.Sequential(cr.nn.Dense(9, 8, "tanh"), cr.nn.Dense(8, 5))
        trainer = cr.Trainer(model, CE(), optimizer, seed=1)
        start = {k: p.data.copy() for k, p in model.parameters().items()}
        for _ in range(5):
            trainer.step(x, y)
        return start, {k: p.data for k, p in model.parameters().items()}

    groups = {"0.*": {"lr": 0.0}, "*.bias": {"lr": 0.03, "weight_decay": 0.0}}
    start, ours = train(cr.optim.AdamW(0.01, weight_decay=0.5, groups=groups))
    np.testing.assert_array_equal(ours["0.weight"], start["0.weight"])
    np.testing.assert_array_equal(ours["0.bias"], start["0.bias"])

    model = cr.nn.Sequential(cr.nn.Dense(9, 8, "tanh"), cr.nn.Dense(8, 5)).init(1)
    model[0].freeze()
    rules = {"1.weight": cr.optim.AdamW(0.01, weight_decay=0.5),
             "1.bias": cr.optim.AdamW(0.03, weight_decay=0.0)}  # fmt: skip
    for _ in range(5):
        losses = CE()(model(x), cr.tensor(y))
        cr.mean(losses).backward()
        grads = {k: p.grad for k, p in model.trainable().items()}
        for path, rule in rules.items():
            for k, p in model.trainable().items():
                p.grad = grads[k] if k == path else None
            rule.step(model)
    for path in rules:
        np.testing.assert_allclose(ours[path], model.parameters()[path].data, rtol=2e-5)


def test_a_new_learning_rate_scales_every_group():
    optimizer = cr.optim.SGD(0.1, groups={"a": {"lr": 0.3}})
    assert optimizer.coefficients(1)[0, [0, 9]].tolist() == [0.1, 0.3]
    optimizer.lr = 0.05
    np.testing.assert_allclose(optimizer.coefficients(1)[0, [0, 9]], [0.05, 0.15])


def test_optimizer_errors_name_the_group_and_the_parameter():
    x, y = table_data(32)
    with pytest.raises(cr.ChainruleError, match=r"groups\['a'\]: expected 'lr' or 'weight_decay'"):
        cr.optim.SGD(0.1, groups={"a": {"momentum": 0.1}})
    lost = cr.optim.SGD(0.1, groups={"pi.*": {"lr": 0.1}})
    with pytest.raises(cr.ChainruleError, match=r"'pi\.\*' matches no .* weight, bias"):
        cr.Trainer(cr.nn.Dense(9, 5), CE(), lost, seed=1)
    shared = cr.optim.Adam(0.1)
    cr.Trainer(cr.nn.Dense(9, 5), CE(), shared, seed=1).step(x, y)
    with pytest.raises(cr.ChainruleError, match=r"state of 'weight' belongs to another model"):
        cr.Trainer(cr.nn.Dense(9, 5), CE(), shared, seed=1)


def test_setting_an_option_between_steps_counts_at_once():
    x, y = table_data(32)
    optimizer = cr.optim.SGD(0.1, momentum=0.5)
    trainer = cr.Trainer(cr.nn.Dense(9, 5), CE(), optimizer, seed=1)
    trainer.step(x, y)
    before = weight_hash(trainer.model)
    optimizer.lr = 0.0
    trainer.step(x, y)
    assert weight_hash(trainer.model) == before


# -- callbacks -----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_its_layer_and_leaves_the_step_before():
    x, y = table_data(96)
    x = np.abs(x) + 1.0

    def model():
        return cr.nn.Sequential(
            cr.nn.Dense(9, 8, "relu", init=np.full((8, 9), 0.1)),
            lambda t: cr.exp(t * 0.5),
            cr.nn.Dense(8, 5),
        )

    def trainer():
        return cr.Trainer(model(), CE(), cr.optim.SGD(0.01), seed=5)

    bad = x.copy()
    bad[70] = 1e30
    first = trainer()
    with pytest.raises(cr.ChainruleError, match=r"step 5 is (nan|inf).*that of Dense '2'"):
        first.fit(
            np.concatenate([x, bad]), np.concatenate([y, y]), epochs=1, batch_size=32,
            shuffle=False,
        )  # fmt: skip
    assert first.optimizer.steps == 5
    second = trainer()
    second.fit(
        np.concatenate([x, bad])[:160], np.concatenate([y, y])[:160], epochs=1, batch_size=32,
        shuffle=False,
    )  # fmt: skip
    assert weight_hash(first.model) == weight_hash(second.model)


def test_json_lines_and_plot(tmp_path):
    x, y = table_data()
    trainer = cr.Trainer(cr.nn.Dense(9, 5), CE(), cr.optim.Adam(0.05), seed=1)
    history = trainer.fit(
        x, y, epochs=4, batch_size=16, validation=0.3, metrics=["accuracy"],
        callbacks=[cr.callbacks.JSONLogger(tmp_path / "log.jsonl")],
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == history.epochs
    pytest.importorskip("matplotlib")
    figure = history.plot(tmp_path / "history.png")
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
    assert (tmp_path / "history.png").stat().st_size > 1000
