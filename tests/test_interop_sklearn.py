"""Estimators beside scikit-learn's own: same interface, same path of learning, same scores."""

import pickle
import warnings

import numpy as np
import pytest

import chainrule as cr

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn import datasets, neural_network
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from chainrule.interop.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def blobs(classes=3, n=120, n_in=5, dtype="float64"):
    rng = np.random.default_rng(3)
    y = rng.integers(0, classes, n)
    return (rng.normal(size=(n, n_in)) + 2.0 * np.eye(classes, n_in)[y]).astype(dtype), y


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls", [MLPClassifier, MLPRegressor])
def test_check_estimator_finds_no_failure(cls):
    results = check_estimator(cls(max_iter=100), on_fail=None, on_skip=None)
    assert [r["check_name"] for r in results if r["status"] not in ("passed", "skipped")] == []
    assert len(results) > 30


# scikit-learn checks the equivalence of weights and repetitions on its own MLPs with these only.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "estimator",
    [MLPClassifier(solver="lbfgs"), MLPRegressor(solver="sgd", tol=1e-2, random_state=42)],
)
def test_weights_are_repetitions(estimator):
    from sklearn.utils.estimator_checks import check_sample_weight_equivalence_on_dense_data

    check_sample_weight_equivalence_on_dense_data(type(estimator).__name__, estimator)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "sgd", "momentum": 0.0},
        {"solver": "sgd", "momentum": 0.9, "nesterovs_momentum": True},
        {"solver": "sgd", "learning_rate": "invscaling", "momentum": 0.0},
        {"solver": "adam"},
        {"solver": "lbfgs", "max_fun": 60},
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", [2, 3])
def test_learns_on_the_path_of_scikit_learn(options, classes):
    x, y = blobs(classes)
    common = {
        "hidden_layer_sizes": (8, 6), "activation": "tanh", "alpha": 0.05, "shuffle": False,
        "batch_size": 50, "max_iter": 15, "random_state": 4, **options,
    }  # fmt: skip
    theirs = neural_network.MLPClassifier(**common).fit(x, y)
    ours = MLPClassifier(**common).fit(x, y)
    for a, b in zip(
        ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-5)
    np.testing.assert_allclose(ours.predict_log_proba(x), theirs.predict_log_proba(x), atol=1e-4)
    assert ours.n_iter_ == theirs.n_iter_
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))


def test_regression_learns_on_the_path_of_scikit_learn():
    x, _ = blobs()
    y = np.column_stack([x[:, 0] * x[:, 1], np.abs(x[:, 2])])
    for options in ({}, {"loss": "poisson"}):
        common = {"solver": "sgd", "shuffle": False, "max_iter": 10, "random_state": 1, **options}
        targets = y if not options else y[:, 1]
        theirs = neural_network.MLPRegressor(**common).fit(x, targets)
        ours = MLPRegressor(**common).fit(x, targets)
        np.testing.assert_allclose(ours.predict(x), theirs.predict(x), rtol=1e-6)


@pytest.mark.parametrize("load", [datasets.load_digits, datasets.load_wine, datasets.load_iris])
def test_accuracy_is_as_good(load):
    x, y = load(return_X_y=True)
    scores = []
    for cls in (neural_network.MLPClassifier, MLPClassifier):
        total = 0.0
        for seed in range(2):
            x1, x2, y1, y2 = train_test_split(x, y, random_state=seed, stratify=y)
            model = make_pipeline(StandardScaler(), cls(max_iter=40, random_state=seed))
            total += model.fit(x1, y1).score(x2, y2)
        scores.append(total / 2)
    assert scores[1] >= scores[0] - 0.01


def test_works_in_pipelines_searches_and_clones():
    x, y = blobs()
    model = make_pipeline(StandardScaler(), MLPClassifier(max_iter=20, random_state=0, threads=1))
    grid = {"mlpclassifier__activation": ["gelu", "tanh"], "mlpclassifier__alpha": [0.0, 0.1]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = GridSearchCV(model, grid, n_jobs=2, cv=2).fit(x, y)
    assert search.best_score_ > 0.6
    again = clone(model).fit(x, y)
    np.testing.assert_array_equal(again.predict_proba(x), model.fit(x, y).predict_proba(x))


def test_threads_do_not_change_a_bit():
    x, y = blobs(n=700)
    hashes = {
        MLPClassifier(max_iter=3, random_state=0, threads=t).fit(x, y).coefs_[0].tobytes()
        for t in (1, 2, None)
    }
    assert len(hashes) == 1


def test_float32_stays_float32():
    x, y = blobs(dtype="float32")
    model = MLPClassifier(max_iter=3).fit(x, y)
    assert model.coefs_[0].dtype == np.float32
    assert model.predict_proba(x).dtype == np.float32


def test_pickles_and_saves_plain_arrays(tmp_path):
    x, y = blobs()
    names = np.array(["ant", "bee", "cat"])[y]
    model = MLPClassifier(max_iter=5, random_state=0, class_weight={"ant": 2.0, "bee": 1, "cat": 1})
    model.partial_fit(x, names, classes=["ant", "bee", "cat"])
    assert b"chainrule.trainer" not in pickle.dumps(model)
    assert b"chainrule.graph" not in pickle.dumps(model)
    path = tmp_path / "model"
    model.save(path)
    for again in (pickle.loads(pickle.dumps(model)), MLPClassifier.load(path)):
        assert again.get_params() == model.get_params()
        np.testing.assert_array_equal(again.predict(x), model.predict(x))
        again.partial_fit(x, names)  # the optimizer goes on where it stood
        expected = clone_state(model).partial_fit(x, names)
        np.testing.assert_array_equal(again.coefs_[0], expected.coefs_[0])
    regressor = MLPRegressor(hidden_layer_sizes=(4,), solver="lbfgs", max_iter=5).fit(x, y)
    regressor.save(path)
    np.testing.assert_array_equal(MLPRegressor.load(path).predict(x), regressor.predict(x))
    with pytest.raises(cr.ChainruleError, match="expected a MLPClassifier"):
        MLPClassifier.load(path)


def clone_state(model):
    return pickle.loads(pickle.dumps(model))


def margin(z, y):
    """A squared hinge on scores, targets 0 and 1."""
    return cr.sum(cr.square(cr.relu(1.0 - z * (2.0 * y - 1.0))), axis=1)


def test_a_loss_of_ones_own(tmp_path):
    x, y = blobs(2)
    model = MLPClassifier(loss=margin, activation="swish", random_state=0, max_iter=100).fit(x, y)
    assert model.score(x, y) > 0.8
    model.save(tmp_path / "m")
    with pytest.raises(cr.ChainruleError, match="loss="):
        MLPClassifier.load(tmp_path / "m")
    np.testing.assert_array_equal(
        MLPClassifier.load(tmp_path / "m", loss=margin).predict(x), model.predict(x)
    )


def test_class_weight_moves_the_boundary():
    x, y = blobs(2, n=300)
    keep = (y == 0) | (np.arange(300) % 8 == 0)
    x, y = x[keep], y[keep]
    plain = MLPClassifier(random_state=0, max_iter=40).fit(x, y)
    balanced = MLPClassifier(random_state=0, max_iter=40, class_weight="balanced").fit(x, y)
    assert (balanced.predict(x) == 1).sum() > (plain.predict(x) == 1).sum()


def test_early_stopping_takes_multilabel_targets():
    x, y = datasets.make_multilabel_classification(n_samples=200, random_state=0)
    model = MLPClassifier(early_stopping=True, random_state=0, max_iter=300).fit(x, y)
    assert model.n_iter_ < 300
    assert len(model.validation_scores_) == model.n_iter_
    assert model.best_validation_score_ == max(model.validation_scores_)
    assert model.predict(x).shape == y.shape
    x, y = blobs()
    weighted = MLPRegressor(early_stopping=True, max_iter=300, random_state=0)
    weighted.fit(x, y.astype(float), sample_weight=np.linspace(0.5, 1.0, len(x)))
    assert weighted.n_iter_ < 300


def test_adaptive_rates_and_warm_starts():
    x, y = blobs()
    options = {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 1}
    model = MLPClassifier(**options, random_state=0, max_iter=100).fit(x, y)
    assert model.n_iter_ < 100
    warm = MLPClassifier(warm_start=True, max_iter=5, random_state=0).fit(x, y)
    before = warm.loss_
    assert warm.fit(x, y).loss_ < before
    with pytest.raises(ValueError, match="classes"):
        warm.fit(x[y < 2], y[y < 2])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"activation": "tanhh"}, "activation: expected one of"),
        ({"alpha": -1.0}, "alpha: expected a number from 0"),
        ({"hidden_layer_sizes": (5, 0)}, "hidden_layer_sizes"),
        ({"loss": "hinge"}, "loss: expected 'log_loss'"),
        ({"threads": 0}, "threads"),
        ({"early_stopping": True, "validation_fraction": 0.001}, "validation_fraction"),
    ],
)
def test_bad_parameters_are_named(options, match):
    x, y = blobs()
    with pytest.raises(ValueError, match=match):
        MLPClassifier(**options).fit(x, y)


def test_an_unfinished_fit_warns():
    x, y = blobs()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        MLPClassifier(max_iter=2).fit(x, y)
    assert any(issubclass(w.category, ConvergenceWarning) for w in caught)
