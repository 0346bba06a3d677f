"""Trainer: the same numbers on both backends, the same bits everywhere, and resuming to them."""

import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from conftest import Window, table_data, weight_hash, window_data

import chainrule as cr
from chainrule import backend, graph


def mlp(dtype="float32", activation="tanh", dropout=0.0):
    layers = [cr.nn.Dense(9, 33, activation, dtype=dtype), cr.nn.Dense(33, 17, "relu", dtype=dtype)]
    if dropout:
        layers.append(cr.nn.Dropout(dropout))
    return cr.nn.Sequential(*layers, cr.nn.Dense(17, 5, dtype=dtype))


OPTIMIZERS = {
    "sgd": lambda: cr.optim.SGD(0.1),
    "sgd_decay": lambda: cr.optim.SGD(0.1, weight_decay=0.01, clip_value=0.05),
    "momentum": lambda: cr.optim.SGD(0.05, momentum=0.9),
    "nesterov": lambda: cr.optim.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: cr.optim.Adam(0.01),
    "adam_norm": lambda: cr.optim.Adam(0.01, clip_norm=0.5),
    "adamw": lambda: cr.optim.AdamW(0.01, weight_decay=0.1),
    "rmsprop": lambda: cr.optim.RMSProp(0.005),
    "adagrad": lambda: cr.optim.Adagrad(0.05),
    "cosine": lambda: cr.optim.SGD(0.1, schedule=cr.optim.schedules.cosine(50)),
}


class Losses(cr.callbacks.Callback):
    """Keeps the loss of each epoch; with one minibatch an epoch, of each step."""

    def __init__(self):
        self.losses = []

    def on_epoch_end(self, trainer, logs):
        self.losses.append(logs["loss"])


def first_losses(model, x, y, dtype_backend, optimizer, steps=100):
    log = Losses()
    trainer = cr.Trainer(
        model, cr.losses.SoftmaxCrossEntropy(), optimizer, seed=5, backend=dtype_backend
    )
    trainer.fit(x, y, epochs=steps, batch_size=len(x), callbacks=[log])
    return np.array(log.losses)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-9), ("float32", 1e-4)])
def test_both_backends_give_the_same_losses(optimizer, dtype, bound):
    x, y = table_data(60, dtype=dtype)
    ours, theirs = (
        first_losses(mlp(dtype), x, y, name, OPTIMIZERS[optimizer]()) for name in ("c", "numpy")
    )
    assert ours[-1] < ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-9), ("float32", 1e-4)])
def test_both_backends_train_the_window_network_alike(dtype, bound):
    ids, y = window_data(64)
    ours, theirs = (
        first_losses(Window(dtype=dtype), ids, y, name, cr.optim.SGD(0.5))
        for name in ("c", "numpy")
    )
    assert ours[-1] < ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


def fit_hash(make, x, y, optimizer, *, epochs=3, batch_size=32, **options):
    model = make()
    trainer = cr.Trainer(
        model, cr.losses.SoftmaxCrossEntropy(), OPTIMIZERS[optimizer](), seed=11, **options
    )
    trainer.fit(x, y, epochs=epochs, batch_size=batch_size)
    return weight_hash(model)


def eager_hash(make, x, y, optimizer, *, epochs=3, batch_size=32, seed=11):
    """The same training, written as a loop of eager calls."""
    model, rule = make().init(seed), OPTIMIZERS[optimizer]()
    key = backend.stream_key(seed, "shuffle")
    for epoch in range(epochs):
        order = backend.permutation(key, epoch, len(x))
        for first in range(0, len(x), batch_size):
            rows = order[first : first + batch_size]
            losses = cr.losses.SoftmaxCrossEntropy()(model(x[rows]), cr.tensor(y[rows]))
            ones = graph.Tensor(np.ones(len(rows), losses.dtype))
            graph.apply("weighted_mean", (losses, ones)).backward()
            rule.step(model)
    return weight_hash(model)


class Factors(cr.nn.Module):
    """A parameter that is a factor of another one's gradient."""

    def __init__(self):
        self.a, self.b = cr.nn.Parameter((9, 6), 0.5), cr.nn.Parameter((6, 5), 0.5)

    def forward(self, x):
        return cr.functions.as_tensor(x) @ (self.a @ self.b)


class Twice(cr.nn.Module):
    """A table that is looked up in twice, and a layer that is used twice."""

    def __init__(self):
        self.embed = cr.nn.Embedding(60, 4)
        self.same, self.out = cr.nn.Dense(4, 4, "tanh"), cr.nn.Dense(8, 4)

    def forward(self, ids):
        parts = [self.same(self.same(self.embed(ids[:, i]))) for i in (0, 1)]
        return self.out(cr.concatenate(parts, axis=1))


MODELS = {
    "factors": (Factors, table_data),
    "twice": (Twice, window_data),
    "mlp": (mlp, table_data),
    "gelu": (lambda: mlp(activation="gelu"), table_data),
    "float64": (lambda: mlp("float64", "sigmoid"), lambda: table_data(dtype="float64")),
    "window": (Window, window_data),
}


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adam_norm"])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_one_hash_for_threads_eager_program_and_fusing(model, optimizer, monkeypatch):
    make, data = MODELS[model]
    x, y = data()
    expected = fit_hash(make, x, y, optimizer, threads=1)
    for threads in (2, 3, 4):
        assert fit_hash(make, x, y, optimizer, threads=threads) == expected
    assert eager_hash(make, x, y, optimizer) == expected
    original = cr.trainer.Program
    monkeypatch.setattr(cr.trainer, "Program", lambda *args: original(*args, fuse=False))
    assert fit_hash(make, x, y, optimizer, threads=2) == expected


def test_another_seed_gives_another_hash():
    x, y = table_data()
    make = MODELS["mlp"][0]
    model = make()
    cr.Trainer(model, cr.losses.SoftmaxCrossEntropy(), cr.optim.SGD(0.1), seed=12).fit(
        x, y, epochs=3, batch_size=32
    )
    assert weight_hash(model) != fit_hash(make, x, y, "sgd")


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_row_of_predict_does_not_depend_on_its_batch(model):
    make, data = MODELS[model]
    x, y = data()
    trainer = cr.Trainer(make(), cr.losses.SoftmaxCrossEntropy(), cr.optim.SGD(0.1), seed=1)
    trainer.fit(x, y, epochs=1, batch_size=32)
    whole = trainer.predict(x)
    for size in (1, 7, 64):
        np.testing.assert_array_equal(trainer.predict(x, batch_size=size), whole)
    for row in (0, 17, len(x) - 1):
        np.testing.assert_array_equal(trainer.predict(x[row : row + 1])[0], whole[row])
    trainer.model.eval()
    np.testing.assert_array_equal(trainer.model(x).data, whole)


def test_two_fits_are_one_longer_fit():
    x, y = table_data()
    a, b = (cr.Trainer(mlp(), cr.losses.SoftmaxCrossEntropy(), cr.optim.Adam(), seed=2)
            for _ in range(2))  # fmt: skip
    a.fit(x, y, epochs=1, batch_size=32)
    a.fit(x, y, epochs=1, batch_size=32)
    b.fit(x, y, epochs=2, batch_size=32)
    assert weight_hash(a.model) == weight_hash(b.model)


def test_steps_are_a_fit_without_shuffling():
    x, y = table_data(96)
    a, b = (cr.Trainer(mlp(), cr.losses.SoftmaxCrossEntropy(), cr.optim.Adam(), seed=2)
            for _ in range(2))  # fmt: skip
    history = a.fit(x, y, epochs=1, batch_size=32, shuffle=False)
    losses = [b.step(x[i : i + 32], y[i : i + 32]) for i in (0, 32, 64)]
    assert weight_hash(a.model) == weight_hash(b.model)
    assert history["loss"][0] == pytest.approx(np.mean(losses), rel=1e-12)


def test_dropout_is_drawn_by_the_step():
    x, y = table_data()
    hashes = {
        fit_hash(lambda: mlp(dropout=0.3), x, y, "sgd", threads=threads) for threads in (1, 2, 3)
    }
    assert len(hashes) == 1
    assert hashes != {fit_hash(mlp, x, y, "sgd")}
    trainer = cr.Trainer(
        mlp(dropout=0.3), cr.losses.SoftmaxCrossEntropy(), cr.optim.SGD(0.1), seed=1
    )
    np.testing.assert_array_equal(trainer.predict(x), trainer.predict(x))


# -- resuming ------------------------------------------------------------------------------------


def resumable(path, **options):
    return cr.Trainer(
        mlp(dropout=0.2), cr.losses.SoftmaxCrossEntropy(), cr.optim.Adam(0.01), seed=3, **options
    )


class Interrupt(cr.callbacks.Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, trainer, logs):
        if logs["epoch"] == self.epoch:
            raise KeyboardInterrupt


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path):
    x, y = table_data()
    path = tmp_path / "run.safetensors"

    def script(interrupt=None):
        trainer = resumable(path, resume_from=path)
        callbacks = [cr.callbacks.EarlyStopping("val_loss", patience=50)]
        if interrupt is not None:
            callbacks.append(Interrupt(interrupt))
        options = {"batch_size": 32, "validation": 0.2, "checkpoint": path}
        first = trainer.fit(x, y, epochs=3, callbacks=callbacks, **options)
        second = trainer.fit(x, y, epochs=4, callbacks=callbacks, **options)
        return weight_hash(trainer.model), first.epochs + second.epochs

    expected = script()
    path.unlink()
    for epoch in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            script(interrupt=epoch)
    assert script() == expected
    assert script() == expected  # and once more: everything is done, histories come back


def test_resuming_in_the_middle_of_an_epoch(tmp_path):
    x, y = table_data(130)
    path, whole = tmp_path / "run.safetensors", resumable(None)
    expected = whole.fit(x, y, epochs=2, batch_size=16)
    part = resumable(None)
    saved = []
    original = part._save

    def save(*args):
        original(*args)
        saved.append(part.optimizer.steps)
        if len(saved) == 3:
            raise KeyboardInterrupt

    part._save = save
    with pytest.raises(KeyboardInterrupt):
        part.fit(x, y, epochs=2, batch_size=16, checkpoint=path, checkpoint_every=4)
    assert saved == [4, 8, 12]
    rest = resumable(None, resume_from=path)
    assert rest.optimizer.steps == 12
    history = rest.fit(x, y, epochs=2, batch_size=16, checkpoint=path, checkpoint_every=4)
    assert weight_hash(rest.model) == weight_hash(whole.model)
    assert history.epochs == expected.epochs


def test_a_killed_process_resumes_to_the_same_bits(tmp_path):
    script = textwrap.dedent(
        """
        import sys, hashlib, numpy as np, chainrule as cr
        rng = np.random.default_rng(0)
        x = rng.normal(size=(4000, 64)).astype("float32"); y = x[:, :5].argmax(axis=1)
        model = cr.nn.Sequential(cr.nn.Dense(64, 128, "tanh"), cr.nn.Dense(128, 5))
        loss, path = cr.losses.SoftmaxCrossEntropy(), sys.argv[1]
        t = cr.Trainer(model, loss, cr.optim.Adam(), seed=1, resume_from=path)
        t.fit(x, y, epochs=int(sys.argv[2]), batch_size=50, checkpoint=path, checkpoint_every=7)
        print(hashlib.sha256(b"".join(p.data.tobytes() for p in model.parameters().values()))
              .hexdigest())
        """
    )
    file = tmp_path / "script.py"
    file.write_text(script)

    def run(path):
        return subprocess.run(
            [sys.executable, file, path, "12"], capture_output=True, text=True, check=True
        ).stdout

    expected = run(tmp_path / "a")
    path = tmp_path / "b"
    for delay in (0.0, 0.01, 0.05):
        before = path.stat().st_mtime_ns if path.exists() else None
        process = subprocess.Popen([sys.executable, file, path, "12"], stdout=subprocess.DEVNULL)
        while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == before):
            time.sleep(0.001)
        time.sleep(delay)
        assert process.poll() is None, "it finished before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run(path) == expected


def test_ctrl_c_leaves_weights_and_counters_in_step():
    x, y = table_data()
    trainer = cr.Trainer(mlp(), cr.losses.SoftmaxCrossEntropy(), cr.optim.Adam(), seed=1)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, y, epochs=1_000_000, batch_size=32, shuffle=False)
    timer.join()
    steps = trainer.optimizer.steps
    assert steps > 0
    again = cr.Trainer(mlp(), cr.losses.SoftmaxCrossEntropy(), cr.optim.Adam(), seed=1)
    batches = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 130, 32)]
    for step in range(steps):
        again.step(*batches[step % 5])
        if step % 1000 == 0 and steps > 20_000:
            pytest.skip("too many steps to repeat one by one")
    assert weight_hash(again.model) == weight_hash(trainer.model)


def test_resuming_asks_for_the_same_fit(tmp_path):
    x, y = table_data()
    path = tmp_path / "run"
    resumable(None).fit(x, y, epochs=2, batch_size=32, checkpoint=path)
    with pytest.raises(ValueError, match=r"epochs=5, but the checkpoint has completed .* epochs=2"):
        resumable(None, resume_from=path).fit(x, y, epochs=5, batch_size=32)
    with pytest.raises(ValueError, match="batch_size=16"):
        resumable(None, resume_from=path).fit(x, y, epochs=2, batch_size=16)


def test_a_stop_is_part_of_the_checkpoint(tmp_path):
    x, y = table_data()
    path = tmp_path / "run"

    class Stop(cr.callbacks.Callback):
        def __init__(self, kill):
            self.kill = kill

        def on_epoch_end(self, trainer, logs):
            trainer.stop = logs["epoch"] == 1
            if trainer.stop and self.kill:
                trainer.save(path)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resumable(None).fit(x, y, epochs=9, batch_size=32, callbacks=[Stop(True)])
    rest = resumable(None, resume_from=path)
    assert len(rest.fit(x, y, epochs=9, batch_size=32, callbacks=[Stop(False)])) == 2


def test_a_checkpoint_of_another_model_is_refused(tmp_path):

    path = tmp_path / "run"
    resumable(None).save(path)
    other = cr.nn.Sequential(cr.nn.Dense(9, 5))
    with pytest.raises(OSError, match=r"does not fit|only in the"):
        cr.Trainer(other, cr.losses.SoftmaxCrossEntropy(), cr.optim.Adam(), resume_from=path)
    cr.save(other.init(0), tmp_path / "model")
    with pytest.raises(OSError, match="not a Trainer"):
        resumable(None, resume_from=tmp_path / "model")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(OSError, match="cut short"):
        resumable(None, resume_from=path)


# -- data ----------------------------------------------------------------------------------------


class TwoHeads(cr.nn.Module):
    def __init__(self):
        self.body = cr.nn.Dense(9, 8, "tanh")
        self.a, self.b = cr.nn.Dense(8, 5), cr.nn.Dense(8, 1)

    def forward(self, inputs):
        h = self.body(inputs["numbers"])
        return {"class": self.a(h), "value": self.b(h)}


def test_structured_data_losses_of_ones_own_and_weights():
    x, y = table_data()

    def loss(outputs, targets):
        first = cr.losses.SoftmaxCrossEntropy()(outputs["class"], targets[0])
        second = cr.losses.Huber()(outputs["value"], targets[1])
        return first + second, {"huber": second}

    trainer = cr.Trainer(TwoHeads(), loss, cr.optim.Adam(0.02), seed=1)
    target = x.sum(axis=1)
    weight = np.where(np.arange(len(x)) % 2, 0.0, 1.0)
    history = trainer.fit(
        {"numbers": x}, (y, target), epochs=8, batch_size=32, sample_weight=weight,
        validation=({"numbers": x}, (y, target)),
    )  # fmt: skip
    assert history["loss"][-1] < history["loss"][0]
    assert len(history["huber"]) == 8
    out = trainer.predict({"numbers": x})
    assert out["class"].shape == (130, 5)
    assert out["value"].shape == (130, 1)


def test_weights_of_zero_are_rows_left_out():
    x, y = table_data(64)
    keep = np.arange(64) < 32
    results = []
    for rows, weight in ((slice(None), keep.astype(float)), (keep, None)):
        trainer = cr.Trainer(
            mlp("float64"), cr.losses.SoftmaxCrossEntropy(), cr.optim.SGD(0.1), seed=1
        )
        data = x[rows].astype("float64"), y[rows]
        trainer.fit(*data, epochs=3, batch_size=64, shuffle=False, sample_weight=weight)
        results.append(trainer.predict(x.astype("float64")))
    np.testing.assert_allclose(*results, rtol=1e-12)


def test_frozen_parameters_stay():
    ids, y = window_data()
    model = Window().init(0)
    model.embed.freeze()
    before = model.embed.weight.data.copy()
    cr.Trainer(model, cr.losses.SoftmaxCrossEntropy(), cr.optim.SGD(0.5), seed=1).fit(
        ids, y, epochs=1, batch_size=32
    )
    np.testing.assert_array_equal(model.embed.weight.data, before)


def test_rows_of_an_embedding_that_no_minibatch_touches_stay():
    ids, y = window_data(vocabulary=20)
    model = Window(vocabulary=40).init(0)
    before = model.embed.weight.data.copy()
    cr.Trainer(
        model, cr.losses.SoftmaxCrossEntropy(), cr.optim.Adam(0.1, weight_decay=0.1), seed=1
    ).fit(ids, y, epochs=1, batch_size=32)
    np.testing.assert_array_equal(model.embed.weight.data[20:], before[20:])
    assert (model.embed.weight.data[:20] != before[:20]).any(axis=1).all()


def bad(message, error=ValueError, **changes):
    return pytest.param(changes, error, message, id=message)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        bad("y has 129 rows", y=np.zeros(129, int)),
        bad("row 3 holds a value that is not finite", x_nan=3),
        bad("expected a label below 5", y=np.full(130, 5)),
        bad("integer labels", TypeError, y=np.zeros(130)),
        bad("labels", y=np.zeros((130, 5), int)),
        bad(r"expects \(batch, 9\)", x=np.zeros((130, 8))),
        bad("x has no rows", x=np.zeros((0, 9)), y=np.zeros(0, int)),
        bad("batch_size", batch_size=0),
        bad("epochs", epochs=-1),
        bad("sample_weight: row 0 is negative", sample_weight=np.full(130, -1.0)),
        bad("sample_weight: expected shape", sample_weight=np.ones((130, 1))),
        bad("fraction between 0 and 1", validation=1.5),
        bad("expected numbers", x=np.full((130, 9), "a")),
    ],
)
def test_bad_input_is_named(changes, error, message):
    x, y = table_data()
    options = {"x": x, "y": y, "epochs": 1, "batch_size": 32, **changes}
    if "x_nan" in options:
        options["x"] = x.copy()
        options["x"][options.pop("x_nan"), 2] = np.nan
    trainer = cr.Trainer(mlp(), cr.losses.SoftmaxCrossEntropy(), cr.optim.SGD(0.1), seed=1)
    before = weight_hash(trainer.model)
    with pytest.raises(error, match=message) as caught:
        trainer.fit(**options)
    assert isinstance(caught.value, cr.ChainruleError)
    assert weight_hash(trainer.model) == before


def test_ids_out_of_range_are_named():
    ids, y = window_data()
    ids[5, 1] = 40
    trainer = cr.Trainer(Window(), cr.losses.SoftmaxCrossEntropy(), cr.optim.SGD(0.1), seed=1)
    with pytest.raises(cr.ChainruleError, match=r"row 5 .* an id below 40"):
        trainer.fit(ids, y, epochs=1, batch_size=32)


def test_a_loss_that_is_not_finite_names_its_step():
    x, y = table_data(dtype="float64")
    model = cr.nn.Sequential(cr.nn.Dense(9, 1, dtype="float64"))
    trainer = cr.Trainer(model, cr.losses.MeanSquaredError(), cr.optim.SGD(1e120), seed=1)
    with pytest.raises(cr.ChainruleError, match=r"loss of step \d+ is (inf|nan)"):
        trainer.fit(x, y.astype(float), epochs=20, batch_size=130)


def test_losses_that_cannot_be_compiled_are_refused():
    x, y = table_data()

    def untraceable(z, t):
        return z * float(z.sum())

    for loss, message in (
        (untraceable, "traced"),
        (lambda z, t: 1.0, "made of ops"),
        (lambda z, t: cr.sum(cr.stop_gradient(z)), "does not depend"),
    ):
        trainer = cr.Trainer(mlp(), loss, cr.optim.SGD(0.1), seed=1)
        with pytest.raises(cr.ChainruleError, match=message):
            trainer.fit(x, y, epochs=1, batch_size=32)


def test_early_stopping_restores_the_best():
    x, y = table_data()
    stop = cr.callbacks.EarlyStopping("val_loss", patience=2)
    trainer = cr.Trainer(mlp(), cr.losses.SoftmaxCrossEntropy(), cr.optim.Adam(0.05), seed=1)
    history = trainer.fit(x, y, epochs=200, batch_size=16, validation=0.3, callbacks=[stop])
    assert len(history) < 200
    best = min(history["val_loss"])
    assert history["val_loss"].index(best) == len(history) - 3
    held = trainer._split(cr.data.Dataset(x, y, None, np.dtype("float32")), 0.3)[1]
    assert trainer.evaluate(*held)["loss"] == best


def test_metrics_plateau_and_log(tmp_path):
    x, y = table_data()
    calls = [
        cr.callbacks.ReduceLROnPlateau("val_loss", patience=0, factor=0.5),
        cr.callbacks.CSVLogger(tmp_path / "log.csv"),
    ]
    trainer = cr.Trainer(mlp(), cr.losses.SoftmaxCrossEntropy(), cr.optim.Adam(0.05), seed=1)

    def top(targets, outputs):
        return float(np.mean(outputs.argmax(axis=1) == targets))

    history = trainer.fit(
        x, y, epochs=30, batch_size=16, validation=0.3, metrics=["accuracy", top], callbacks=calls
    )
    assert history["val_accuracy"] == history["val_top"]
    assert history["lr"][-1] < history["lr"][0]
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert len(lines) == 31
    assert lines[0].startswith("epoch,loss,lr,val_loss")
    history.to_csv(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text().splitlines() == lines


def test_a_second_thread_is_told():
    x, y = table_data()
    trainer = cr.Trainer(mlp(), cr.losses.SoftmaxCrossEntropy(), cr.optim.SGD(0.1), seed=1)
    caught = []

    class Second(cr.callbacks.Callback):
        def on_epoch_end(self, trainer, logs):
            def use():
                try:
                    trainer.predict(x)
                except cr.ChainruleError as error:
                    caught.append(str(error))

            thread = threading.Thread(target=use)
            thread.start()
            thread.join()

    trainer.fit(x, y, epochs=1, batch_size=32, callbacks=[Second()])
    assert len(caught) == 1
    assert "another thread" in caught[0]


def test_progress_prints_a_line_an_epoch_off_a_terminal(capsys):
    x, y = table_data()
    trainer = cr.Trainer(mlp(), cr.losses.SoftmaxCrossEntropy(), cr.optim.SGD(0.1), seed=1)
    trainer.fit(x, y, epochs=2, batch_size=32, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", "1"], ["epoch", "2"]]
