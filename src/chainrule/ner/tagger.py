"""WindowTagger: named entities from the window of words around each word."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

import chainrule as cr

from .. import backend as backends
from .. import checkpoint
from ..errors import DataError, FileError, UsageError
from .corpus import Sentence, Span, read_sentences, spans_of, tokenize_lines
from .scores import Scores, score
from .vectors import Vectors, read_vectors
from .windows import CASES, FIRST, Windows

Array = NDArray[Any]
Sentences = str | os.PathLike[str] | Iterable[Sentence]

_KIND = "ner.WindowTagger"
_VERSION = 1
_ROWS = 4096  # windows scored at a time
_WORDS: Mapping[str, int] = {"word": 50, "case": 8, "prefix3": 20, "suffix2": 10, "suffix3": 20}
_CHARACTERS: Mapping[str, int] = {"token": 40, "case": 4, "script": 4}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # The network of the lecture as it stands: word vectors and nothing else.
    "lecture": {"window": 2, "hidden": (100,), "views": {"word": 50}, "dropout": 0.0},
    "characters": {"window": 5, "hidden": (150,), "views": _CHARACTERS, "dropout": 0.3},
}


@dataclass(frozen=True, slots=True)
class Entity:
    """A named entity in a text.

    Parameters
    ----------
    text
        The entity.
    label
        Its type.
    start, end
        Its characters in the text, `end` excluded.
    score
        Probability of the type at the least certain of its tokens.
    """

    text: str
    label: str
    start: int
    end: int
    score: float


def in_text(
    text: str, tokens: Sequence[tuple[str, int, int]], spans: Iterable[tuple[Span, float]]
) -> list[Entity]:
    """Token spans as entities of the text that the tokens come from."""
    found = []
    for span, probability in spans:
        start, end = tokens[span.start][1], tokens[span.end - 1][2]
        found.append(Entity(text[start:end], span.label, start, end, probability))
    return found


class _Network(cr.nn.Module):
    """Vectors of all views of all words in the window -> hidden layers -> scores of the tags."""

    def __init__(
        self,
        tables: Mapping[str, cr.nn.Embedding],
        window: int,
        hidden: Sequence[int],
        activation: str,
        outputs: int,
        dropout: float,
    ) -> None:
        self.views = {name: table.dim for name, table in tables.items()}
        for name, table in tables.items():
            setattr(self, name, table)
        self.flatten = cr.nn.Flatten()
        self.dropout = cr.nn.Dropout(dropout)
        n = (2 * window + 1) * sum(self.views.values())
        layers = []
        for width in hidden:
            layers.append(cr.nn.Dense(n, width, activation))
            n = width
        self.hidden = cr.nn.Sequential(*layers)
        # The binary form is the lecture's s = u.T h, without a bias.
        self.output = cr.nn.Dense(n, outputs, bias=outputs > 1)

    def forward(self, ids: Mapping[str, Any]) -> cr.Tensor:
        vectors = [self.flatten(getattr(self, name)(ids[name])) for name in self.views]
        x = vectors[0] if len(vectors) == 1 else cr.concatenate(vectors, axis=1)
        scores: cr.Tensor = self.output(self.hidden(self.dropout(x)))
        return scores


@dataclass(frozen=True, slots=True)
class _Model:
    """What training makes; a tagger changes from one to the next as a whole."""

    labels: list[str]
    target: str | None  # of the logistic form
    tags: list[str]
    unit: str
    windows: Windows
    network: _Network
    steps: Array  # what each pair of tags adds to the score of a sequence
    history: list[dict[str, float]]

    @property
    def outputs(self) -> int:
        """Scores a word."""
        return len(self.tags) if self.target is None else 1

    def targets(self, sentences: Sequence[Sentence]) -> Array:
        """Number of the tag of each token; for the logistic form 0.0 and 1.0, shape (n, 1)."""
        tags = [tag for s in sentences for tag in _bioes(s)]
        if self.target is not None:
            return np.array([[tag[2:] == self.target] for tag in tags], np.float32)
        index = {tag: i for i, tag in enumerate(self.tags)}
        # A type that the training part lacks can only be missed: O.
        return np.array([index.get(tag, 0) for tag in tags], np.int64)

    def certainty(self, log_p: Array, span: Span) -> float:
        """Probability of the type at the least certain token of a span."""
        columns = [i for i, tag in enumerate(self.tags) if tag[2:] == span.label]
        inside = log_p[span.start : span.end, columns].tolist()
        return min(1.0, min(sum(map(math.exp, token)) for token in inside))


class WindowTagger:
    """Finds named entities by classifying each word from the window of words around it.

    The vectors of the words in the window, ``x = [x_museums x_in x_Paris x_are x_amazing]``, and
    of further views of them (casing, first and last letters), go through
    ``h = f(W x + b)`` to a softmax over the tags, or to the logistic ``sigma(u.T h)`` for one
    type. The tags are BIOES inside; the best sequence of tags that makes sense is found by
    dynamic programming, weighed by how often tags follow each other.

    Parameters
    ----------
    window
        Words on each side.
    hidden
        Widths of the hidden layers.
    activation
        Their non-linearity.
    classifier
        ``"softmax"`` for all types, ``"logistic"`` for one.
    target
        The type that the logistic form finds; may be left out if the training data has only one.
    threshold
        Probability from which the logistic form takes a word as part of an entity.
    vectors
        Word vectors: a file for `read_vectors`, or its result. Looked up as the word is, then
        lower-cased; kept as they are in training unless `tune_vectors`.
    seed
        Everything random follows from it; None draws one in `fit`.
    views
        Width of the vectors of each view of a word (see `windows.view`). Default: chosen by
        whether the training tokens are words or single characters.
    dropout
        Rate on the inputs, in training.
    tune_vectors
        Train `vectors` too.
    min_count
        A string that the training text holds less often is treated as unknown.
    learning_rate
        Of Adam; falls in a straight line to 0 over the training.
    batch_size
        Words a step.
    transition_weight
        How much the frequencies of tag pairs count, from 0 to 1.
    threads
        For training; None lets the core choose. Results do not depend on it.
    backend
        ``"c"`` or ``"numpy"``.
    """

    def __init__(
        self,
        window: int = 2,
        hidden: Sequence[int] = (100,),
        activation: str = "tanh",
        classifier: str = "softmax",
        target: str | None = None,
        threshold: float = 0.5,
        vectors: str | os.PathLike[str] | Vectors | None = None,
        seed: int | None = None,
        *,
        views: Mapping[str, int] | None = None,
        dropout: float = 0.5,
        tune_vectors: bool = False,
        min_count: int = 2,
        learning_rate: float = 2e-3,
        batch_size: int = 64,
        transition_weight: float = 0.5,
        threads: int | None = None,
        backend: str = "c",
    ) -> None:
        if not isinstance(window, int) or not 0 <= window <= 50:
            raise UsageError(f"window: expected a whole number from 0 to 50, got {window!r}")
        if classifier not in ("softmax", "logistic"):
            raise UsageError(f"classifier: expected 'softmax' or 'logistic', got {classifier!r}")
        if target is not None and classifier != "logistic":
            raise UsageError("target: only the logistic form has one: classifier='logistic'")
        if not 0.0 < threshold < 1.0:
            raise UsageError(f"threshold: expected a number between 0 and 1, got {threshold!r}")
        for name, number in (("min_count", min_count), ("batch_size", batch_size)):
            if not isinstance(number, int) or number < 1:
                raise UsageError(f"{name}: expected a whole number from 1 up, got {number!r}")
        if views is not None and not views:
            raise UsageError("views: expected at least one, such as {'word': 50}")
        self.window = window
        self.hidden = tuple(int(h) for h in hidden)
        self.activation = activation
        self.classifier = classifier
        self.target = target
        self.threshold = float(threshold)
        self.vectors = vectors
        self.seed = seed
        self.views = None if views is None else dict(views)
        self.dropout = float(dropout)
        self.tune_vectors = bool(tune_vectors)
        self.min_count = min_count
        self.learning_rate = float(learning_rate)
        self.batch_size = batch_size
        self.transition_weight = float(transition_weight)
        self.threads = threads
        self.backend = backend
        self._model: _Model | None = None

    @property
    def labels(self) -> list[str]:
        """The types that the tagger finds."""
        return list(self._trained.labels)

    @property
    def unit(self) -> str:
        """What the tokens of the training text were: ``"word"`` or ``"character"``."""
        return self._trained.unit

    @property
    def history(self) -> list[dict[str, float]]:
        """A dict an epoch: ``epoch``, ``loss``, and with validation ``val_loss``, ``val_f1``."""
        return [dict(epoch) for epoch in self._trained.history]

    @property
    def _trained(self) -> _Model:
        if self._model is None:
            raise UsageError("the tagger is not trained: call fit() or load() first")
        return self._model

    @classmethod
    def preset(cls, name: str, **options: Any) -> WindowTagger:
        """A tagger with the settings of a preset: default, lecture or characters.

        Parameters
        ----------
        name
            The preset.
        **options
            Further parameters; they win.
        """
        if name not in PRESETS:
            raise UsageError(f"preset: expected {', '.join(PRESETS)}, got {name!r}")
        return cls(**{**PRESETS[name], **options})

    # -- training ----------------------------------------------------------------------------

    def fit(
        self,
        train: Sentences,
        *,
        validation: Sentences | float | None = None,
        epochs: int = 20,
        patience: int | None = None,
        progress: bool = False,
    ) -> WindowTagger:
        """Train on sentences.

        Parameters
        ----------
        train
            A file for `read_sentences`, or sentences.
        validation
            The same, or the fraction of the training sentences to hold out; measured after each
            epoch.
        epochs
            Passes over the training sentences.
        patience
            Stop when the F1 of the validation has not risen for so many epochs, and go back to the
            best. Default: all epochs.
        progress
            Show how it goes.

        Returns
        -------
        WindowTagger
            Itself.
        """
        sentences = read_sentences(train)
        seed = backends.draw_seed() if self.seed is None else self.seed
        held: list[Sentence] = []
        if isinstance(validation, float):
            sentences, held = _split(sentences, validation, seed)
        elif validation is not None:
            held = read_sentences(validation)
        if patience is not None and not held:
            raise UsageError("patience: needs validation, a file or a fraction")
        model = self._new_model(sentences)

        def data(part: Sequence[Sentence]) -> tuple[dict[str, Array], Array]:
            return model.windows.batch(s.tokens for s in part), model.targets(part)

        def f1(targets: Array, outputs: Array) -> float:
            log_p = self._log_probabilities(model, outputs)
            ends = np.cumsum([len(s.tokens) for s in held])[:-1]
            return _f1(held, [self._decode(model, part) for part in np.split(log_p, ends)], model)

        x, y = data(sentences)
        steps = epochs * -(-len(y) // self.batch_size)
        schedule = cr.optim.schedules.linear(max(1, steps))
        trainer = cr.Trainer(
            model.network,
            cr.losses.SoftmaxCrossEntropy() if model.target is None else cr.losses.Logistic(),
            cr.optim.Adam(self.learning_rate, schedule=schedule),
            seed=seed,
            threads=self.threads,
            backend=self.backend,
        )
        callbacks = []
        if patience is not None:
            callbacks.append(cr.callbacks.EarlyStopping("val_f1", patience, mode="max"))
        history = trainer.fit(
            x,
            y,
            epochs=epochs,
            batch_size=self.batch_size,
            validation=data(held) if held else None,
            metrics=[f1] if held else [],
            callbacks=callbacks,
            progress=progress,
        )
        model.network.eval()
        model.history.extend({k: float(v) for k, v in e.items()} for e in history.epochs)
        self.seed, self._model = seed, model
        return self

    def _new_model(self, sentences: Sequence[Sentence]) -> _Model:
        """Vocabulary, tags and an untrained network with the pre-trained vectors in place."""
        labels = sorted({span.label for s in sentences for span in s.entities})
        if not labels:
            source = sentences[0].source or "train"
            raise DataError(f"{source}: no entity in the training sentences")
        target = None
        if self.classifier == "logistic":
            target = self.target or labels[0]
            if self.target is None and len(labels) > 1:
                raise UsageError(f"target: name one of the types {', '.join(labels)}")
            if target not in labels:
                raise UsageError(
                    f"target: {target!r} is no type of the training sentences, which have "
                    f"{', '.join(labels)}"
                )
            labels = [target]
        characters = all(len(token) == 1 for s in sentences for token in s.tokens)
        views = dict(_CHARACTERS if characters else _WORDS) if self.views is None else self.views
        vectors = self.vectors
        if vectors is not None and not isinstance(vectors, Vectors):
            vectors = read_vectors(vectors)
        if vectors is not None:
            views = {"vector": vectors.width, **views}
        elif "vector" in views:
            raise UsageError("views: 'vector' needs vectors=")
        texts = [s.tokens for s in sentences]
        words = None if vectors is None else vectors.words
        windows = Windows.build(texts, self.window, views, self.min_count, words)
        tags = _tags(labels, target)
        network = self._network(windows, views, tags, vectors)
        steps = self._transitions(sentences, tags) if target is None else np.zeros((0, 0))
        unit = "character" if characters else "word"
        return _Model(labels, target, tags, unit, windows, network, steps, [])

    def _network(
        self,
        windows: Windows,
        views: Mapping[str, int],
        tags: Sequence[str],
        vectors: Vectors | None = None,
    ) -> _Network:
        tables = {
            name: cr.nn.Embedding(rows, views[name])
            for name, rows in windows.sizes.items()
            if name != "vector" or vectors is None
        }
        if vectors is not None:
            table = np.zeros((windows.sizes["vector"], vectors.width), np.float32)
            table[FIRST:] = vectors.array
            tables["vector"] = cr.nn.Embedding(*table.shape, init=table)
            tables["vector"].freeze(not self.tune_vectors)
        return _Network(
            {name: tables[name] for name in views},
            self.window,
            self.hidden,
            self.activation,
            len(tags) if self.classifier == "softmax" else 1,
            self.dropout,
        )

    def _transitions(self, sentences: Sequence[Sentence], tags: Sequence[str]) -> Array:
        """What a pair of tags adds to the score of a sequence, (tags + 1, tags + 1).

        The last row and column stand for the ends of a sentence. ``w log(P(b | a) / P(b))`` for
        pairs that make sense: the evidence that a tag gives for the next, beyond its frequency
        which the network knows already (w < 1, as part of that evidence is in the window too);
        -inf for the others.
        """
        n = len(tags)
        index = {tag: i for i, tag in enumerate(tags)}
        counts = np.full((n, n), 0.1)  # so that a pair which was never seen is possible
        for sentence in sentences:
            for a, b in pairwise(_bioes(sentence)):
                counts[index[a], index[b]] += 1
        evidence = counts * counts.sum() / np.outer(counts.sum(1), counts.sum(0))
        steps = np.zeros((n + 1, n + 1))
        with cr.no_grad(), backends.use(self.backend):
            steps[:n, :n] = self.transition_weight * cr.log(cr.tensor(evidence)).data
        ends = [*tags, "O"]
        return np.where([[_follows(a, b) for b in ends] for a in ends], steps, -np.inf)

    # -- prediction --------------------------------------------------------------------------

    def predict(self, tokens: Sequence[str]) -> list[str]:
        """The tags of a sentence.

        Several threads may call it at once.

        Parameters
        ----------
        tokens
            The words (or characters, if the training tokens were).

        Returns
        -------
        list of str
            IOB2 tags, one a token.
        """
        spans = next(self._spans(self._trained, [tokens]))
        return Sentence(tuple(tokens), tuple(span for span, _ in spans)).tags

    def entities(self, text: str) -> list[Entity]:
        """The entities of a text.

        Parameters
        ----------
        text
            Any text; a line break ends a sentence.

        Returns
        -------
        list of Entity
            In the order of the text.
        """
        return next(self.pipe([text]))

    def pipe(self, texts: Iterable[str], *, batch_size: int = 128) -> Iterator[list[Entity]]:
        """The entities of many texts, faster than one by one and with the same results.

        Parameters
        ----------
        texts
            Any number of them; taken as they are needed.
        batch_size
            Texts tagged at a time.
        """
        model = self._trained
        if isinstance(texts, str):
            raise UsageError("pipe takes many texts, got one: use tagger.entities(text)")
        rest = iter(texts)
        while chunk := list(islice(rest, batch_size)):
            lines: list[list[tuple[str, int, int]]] = []
            owners: list[int] = []
            for i, text in enumerate(chunk):
                if not isinstance(text, str):
                    raise UsageError(f"expected a text, got {type(text).__name__}")
                lines += tokenize_lines(text, model.unit)
                owners += [i] * (len(lines) - len(owners))
            found: list[list[Entity]] = [[] for _ in chunk]
            spans = self._spans(model, [[t for t, _, _ in line] for line in lines])
            for line, owner, marked in zip(lines, owners, spans, strict=True):
                found[owner] += in_text(chunk[owner], line, marked)
            yield from found

    def evaluate(self, sentences: Sentences) -> Scores:
        """Score the tagger on marked sentences.

        Parameters
        ----------
        sentences
            A file for `read_sentences`, or sentences.

        Returns
        -------
        Scores
            Precision, recall and F1 of whole entities; the logistic form is scored on its type.
        """
        truth = read_sentences(sentences)
        predicted = [[span for span, _ in s] for s in self.spans(s.tokens for s in truth)]
        if self._trained.target is not None:
            truth = [_only(s, self.labels) for s in truth]
        return score(truth, predicted)

    def spans(self, sentences: Iterable[Sequence[str]]) -> Iterator[list[tuple[Span, float]]]:
        """The entities of tokenised sentences as token spans, with their probabilities."""
        rest = iter(sentences)
        while chunk := list(islice(rest, 128)):
            yield from self._spans(self._trained, chunk)

    def _spans(
        self, model: _Model, texts: Sequence[Sequence[str]]
    ) -> Iterator[list[tuple[Span, float]]]:
        ids = model.windows.batch(texts)
        n = sum(len(tokens) for tokens in texts)
        parts = [np.zeros((0, model.outputs), np.float32)]
        with cr.no_grad(), backends.use(self.backend), backends.threads(self.threads):
            for first in range(0, n, _ROWS):
                rows = {name: table[first : first + _ROWS] for name, table in ids.items()}
                parts.append(model.network(rows).data)
        log_p = self._log_probabilities(model, np.concatenate(parts))
        first = 0
        for tokens in texts:
            part = log_p[first : first + len(tokens)]
            first += len(tokens)
            yield [(span, model.certainty(part, span)) for span in self._decode(model, part)]

    def _log_probabilities(self, model: _Model, outputs: Array) -> Array:
        """Log-probabilities of the tags, float64 (n, tags)."""
        z = outputs.astype(np.float64)
        if model.target is not None:  # sigma(z) is the softmax of (0, z)
            z = np.concatenate([np.zeros_like(z), z], axis=1)
        if not len(z):
            return z
        with cr.no_grad(), backends.use(self.backend):
            log_p: Array = cr.log_softmax(cr.tensor(z), axis=1).data
        return log_p

    def _decode(self, model: _Model, log_p: Array) -> list[Span]:
        """The entities of one sentence."""
        if not len(log_p):
            return []
        if model.target is not None:
            inside = (log_p[:, 1] >= math.log(self.threshold)).tolist()
            return spans_of([model.tags[i] for i in inside])
        return spans_of([model.tags[i] for i in _viterbi(log_p, model.steps)])

    # -- files -------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tagger as one safetensors file; an existing file is replaced as a whole.

        Parameters
        ----------
        path
            The file.
        """
        model = self._trained
        vocabulary = json.dumps(model.windows.vocabularies, separators=(",", ":"))
        tensors = checkpoint.model_tensors(model.network)
        tensors["transitions"] = model.steps
        tensors["vocabulary"] = np.frombuffer(vocabulary.encode("ascii"), np.uint8)
        config = {
            "kind": _KIND,
            "version": _VERSION,
            "options": self._options(),
            "views": list(model.network.views.items()),
            "cases": list(CASES),
            "labels": model.labels,
            "unit": model.unit,
            "history": model.history,
        }
        checkpoint.save_tensors(path, tensors, config)

    def _options(self) -> dict[str, Any]:
        return {
            "window": self.window,
            "hidden": list(self.hidden),
            "activation": self.activation,
            "classifier": self.classifier,
            "target": self._trained.target,
            "threshold": self.threshold,
            "seed": self.seed,
            "dropout": self.dropout,
            "tune_vectors": self.tune_vectors,
            "min_count": self.min_count,
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "transition_weight": self.transition_weight,
        }

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, threads: int | None = None, backend: str = "c"
    ) -> WindowTagger:
        """Read a tagger that `save` wrote.

        Parameters
        ----------
        path
            The file.
        threads, backend
            As in `WindowTagger`.

        Returns
        -------
        WindowTagger

        Raises
        ------
        FileError
            Where the file is missing, cut short, or of another kind.
        """
        tensors, config = checkpoint.load_tensors(path)
        if config.get("kind") != _KIND:
            raise FileError(f"{os.fspath(path)}: not a model of a tagger (chainrule ner train)")
        if config.get("version") != _VERSION or config.get("cases") != list(CASES):
            raise FileError(
                f"{os.fspath(path)}: written by another version of chainrule (form "
                f"{config.get('version')}, this one reads {_VERSION}): train it again"
            )
        try:
            tagger = cls(**config["options"], threads=threads, backend=backend)
            labels, views = list(config["labels"]), {str(n): int(w) for n, w in config["views"]}
            vocabularies = json.loads(tensors.pop("vocabulary").tobytes())
            windows = Windows(tagger.window, {name: vocabularies[name] for name in views})
            tags = _tags(labels, tagger.target)
            network = tagger._network(windows, views, tags)
            steps = tensors.pop("transitions")
            if steps.shape != ((0, 0) if tagger.target else (len(tags) + 1, len(tags) + 1)):
                raise ValueError("transitions")
            tagger.views = {name: width for name, width in views.items() if name != "vector"}
            tagger._model = _Model(
                labels,
                tagger.target,
                tags,
                str(config["unit"]),
                windows,
                network,
                steps,
                list(config["history"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileError(
                f"{os.fspath(path)}: its parts do not fit together ({error!r})"
            ) from error
        checkpoint.set_model_tensors(network, tensors, path)
        network.eval()
        return tagger

    def info(self) -> dict[str, Any]:
        """What the model is: settings, types, sizes, and how its training went."""
        model = self._trained
        last = model.history[-1] if model.history else {}
        return {
            **self._options(),
            "unit": model.unit,
            "types": self.labels,
            "views": model.network.views,
            "vocabulary": {n: len(words) for n, words in model.windows.vocabularies.items()},
            "parameters": sum(p.size for p in model.network.parameters().values()),
            "epochs": len(model.history),
            **{f"final {k}": v for k, v in last.items() if k not in ("epoch", "lr")},
        }


# -- tags ------------------------------------------------------------------------------------


def _tags(labels: Sequence[str], target: str | None) -> list[str]:
    if target is not None:
        return ["O", f"I-{target}"]
    return ["O", *(f"{prefix}-{label}" for label in labels for prefix in "BIES")]


def _bioes(sentence: Sentence) -> list[str]:
    tags = ["O"] * len(sentence.tokens)
    for start, end, label in sentence.entities:
        inner = [f"I-{label}"] * (end - start - 2)
        single = end - start == 1
        tags[start:end] = [f"S-{label}"] if single else [f"B-{label}", *inner, f"E-{label}"]
    return tags


def _follows(a: str, b: str) -> bool:
    """Whether the BIOES tag b may stand after a."""
    if a[0] in "BI":
        return b[0] in "IE" and a[2:] == b[2:]
    return b[0] in "OBS"


def _viterbi(log_p: Array, steps: Array) -> list[int]:
    """The best sequence of tags: the largest sum of log-probabilities and steps."""
    between = steps[:-1, :-1]
    best = steps[-1, :-1] + log_p[0]
    back = []
    for row in log_p[1:]:
        paths = best[:, None] + between
        back.append(paths.argmax(axis=0))
        best = paths.max(axis=0) + row
    tag = int((best + steps[:-1, -1]).argmax())
    path = [tag]
    for came_from in reversed(back):
        tag = int(came_from[tag])
        path.append(tag)
    return path[::-1]


def _f1(sentences: Sequence[Sentence], predicted: Sequence[Sequence[Span]], model: _Model) -> float:
    # Counted here, not by nervaluate, which training does without.
    correct = found = actual = 0
    for sentence, spans in zip(sentences, predicted, strict=True):
        true = {s for s in sentence.entities if model.target in (None, s.label)}
        correct += len(true.intersection(spans))
        found += len(spans)
        actual += len(true)
    return 2 * correct / (found + actual) if found + actual else 0.0


def _only(sentence: Sentence, labels: Sequence[str]) -> Sentence:
    kept = tuple(s for s in sentence.entities if s.label in labels)
    return Sentence(sentence.tokens, kept, sentence.source, sentence.line)


def _split(
    sentences: list[Sentence], fraction: float, seed: int
) -> tuple[list[Sentence], list[Sentence]]:
    if not 0.0 < fraction < 1.0:
        raise UsageError(f"validation: expected a fraction between 0 and 1, got {fraction}")
    if len(sentences) < 2:
        raise DataError("validation: a fraction needs at least two sentences")
    order = backends.permutation(backends.stream_key(seed, "validation"), 0, len(sentences))
    count = min(len(sentences) - 1, max(1, round(fraction * len(sentences))))
    held = set(order[:count].tolist())
    return (
        [s for i, s in enumerate(sentences) if i not in held],
        [s for i, s in enumerate(sentences) if i in held],
    )
