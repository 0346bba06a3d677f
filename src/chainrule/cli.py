"""The command ``chainrule``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from .errors import ChainruleError, DataError, FileError, UsageError

if TYPE_CHECKING:
    from .ner import Entity, Span, WindowTagger

DEMO_SENTENCE = "the museums in Paris are amazing to see"
DEMO_SEED = 1

Token = tuple[str, int, int]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv
        The words after ``chainrule``; default: those of the process.

    Returns
    -------
    int
        The exit status: 0, 2 for an error that is told in one line, 130 after Ctrl-C.
    """
    try:
        options = _parser().parse_args(argv)
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ChainruleError, OSError, MemoryError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"chainrule: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("chainrule: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="chainrule", description="Backpropagation on CPUs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    ner = commands.add_parser("ner", help="named entities: train, evaluate, tag")
    actions = ner.add_subparsers(required=True, metavar="ACTION")

    def add(
        group: Any, name: str, run: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = group.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    demo = add(actions, "demo", _demo, "train on the bundled corpus, score, tag a sentence, plot")
    demo.add_argument("--out", metavar="DIR", default="chainrule-demo", help="folder to write")
    demo.add_argument("--epochs", type=_count, default=20, metavar="N")
    demo.add_argument("--seed", type=int, default=DEMO_SEED, metavar="N")
    demo.add_argument("--threads", type=_count, metavar="N")

    train = add(actions, "train", _train, "train a tagger and write it as one file")
    train.add_argument("train", metavar="TRAIN", help="CoNLL columns, JSON lines or marked text")
    train.add_argument(
        "--dev", required=True, metavar="FILE|FRACTION", help="what to measure on while training"
    )
    train.add_argument("--out", required=True, metavar="MODEL", help="file to write")
    train.add_argument("--vectors", metavar="FILE", help="word vectors: GloVe or word2vec")
    train.add_argument("--preset", default="default", metavar="NAME", help=_preset_names())
    train.add_argument("--seed", type=int, metavar="N")
    train.add_argument("--threads", type=_count, metavar="N")
    train.add_argument("--epochs", type=_count, default=20, metavar="N")
    train.add_argument("--patience", type=_count, metavar="N", help="stop early on the F1 of --dev")
    train.add_argument("--binary", metavar="TYPE", help="sigma(u.T h) for this type alone")

    evaluate = add(actions, "evaluate", _evaluate, "score a tagger on marked sentences")
    evaluate.add_argument("model", metavar="MODEL")
    evaluate.add_argument("file", metavar="FILE")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.add_argument("--html", metavar="OUT", help="write a page")

    tag = add(actions, "tag", _tag, "find the entities of a text")
    tag.add_argument("model", metavar="MODEL")
    tag.add_argument("file", metavar="FILE", nargs="?", default="-", help="- for standard input")
    tag.add_argument("--input", choices=("text", "tokens", "conll", "jsonl"), default="text")
    tag.add_argument("--format", choices=("color", "conll", "jsonl"), default="color")
    tag.add_argument("--html", metavar="OUT", help="write a page too")
    tag.add_argument("--min-score", type=_probability, default=0.0, metavar="P")

    info = add(actions, "info", _info, "what a tagger is and how its training went")
    info.add_argument("model", metavar="MODEL")

    explain = add(
        commands, "explain", _explain, "tell the forward and the backward pass, step by step"
    )
    explain.add_argument(
        "expression",
        metavar="EXPR",
        nargs="?",
        help='such as "(x + y) * max(y, z)" or "z = W @ x; sum(tanh(z))"; '
        "default: the lecture's s = u.T f(Wx + b)",
    )
    explain.add_argument("values", metavar="NAME=VALUE", nargs="*", help="x=1, W=[[1,2],[3,4]]")
    explain.add_argument("--html", metavar="OUT", help="write a page with a slider")

    add(
        commands,
        "gradcheck",
        _gradcheck,
        "check the gradient of every op, layer and loss, in float64 and in float32",
    )

    bench = add(commands, "bench", _bench, "time training steps beside numpy")
    bench.add_argument("--peers", action="store_true", help="and PyTorch and JAX, if installed")
    add(commands, "doctor", _doctor, "what this build is and runs on")
    return parser


def _preset_names() -> str:
    return "default, lecture or characters"


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, got {text!r}")
    return number


def _probability(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return number


def _writable(path: str) -> None:
    """Refuse a file that could not be written, before the work rather than after it."""
    folder = Path(path).resolve().parent
    if Path(path).is_dir():
        raise FileError(f"{path}: is a folder: give the name of a file")
    if not folder.is_dir():
        raise FileError(f"{path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise FileError(f"{path}: the folder {folder} cannot be written")


def _write(path: str, text: str) -> None:
    """Write a file as a whole or not at all."""
    target = Path(path).resolve()
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


# -- ner -------------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> None:
    from .ner import WindowTagger, read_marked
    from .ner.report import Palette, check_extras, curves, mark, table, use_colour

    check_extras()
    folder = Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: cannot be made: {error.strerror}") from error
    data = resources.files("chainrule.ner") / "data"
    with (
        resources.as_file(data / "train.txt") as train,
        resources.as_file(data / "heldout.txt") as heldout,
    ):
        sentences, held = read_marked(train), read_marked(heldout)
    print(
        f"{len(sentences)} sentences to train on, {len(held)} held out, "
        "none of whose entities occurs in training"
    )
    tagger = WindowTagger(seed=options.seed, threads=options.threads)
    tagger.fit(sentences, validation=held, epochs=options.epochs, progress=True)
    print(f"\nheld-out entities\n{table(tagger.evaluate(held))}\n")
    entities = tagger.entities(DEMO_SENTENCE)
    print(mark(DEMO_SENTENCE, entities, Palette(tagger.labels), use_colour(sys.stdout)))
    model, picture = folder / "model.safetensors", folder / "curves.png"
    tagger.save(model)
    curves(tagger.history, picture)
    print(f"\nwrote {model} and {picture}; more with: chainrule ner tag {model} FILE")


def _train(options: argparse.Namespace) -> None:
    from .ner import WindowTagger, read_sentences
    from .ner.report import table

    _writable(options.out)
    validation: Any = options.dev
    if not Path(options.dev).exists():
        try:
            validation = float(options.dev)
        except ValueError:
            raise FileError(f"--dev: no such file, and no fraction: {options.dev}") from None
        if not 0.0 < validation < 1.0:
            raise UsageError(f"--dev: expected a fraction between 0 and 1, got {options.dev}")
    settings: dict[str, Any] = {"seed": options.seed, "threads": options.threads}
    if options.vectors:
        settings["vectors"] = options.vectors
    if options.binary:
        settings |= {"classifier": "logistic", "target": options.binary}
    tagger = WindowTagger.preset(options.preset, **settings)
    tagger.fit(
        read_sentences(options.train),
        validation=validation,
        epochs=options.epochs,
        patience=options.patience,
        progress=True,
    )
    tagger.save(options.out)
    if isinstance(validation, str):
        try:
            print(table(tagger.evaluate(validation)))
        except UsageError as error:  # nervaluate is missing; the model is there all the same
            print(f"not scored: {error}", file=sys.stderr)
    print(f"wrote {options.out} (seed {tagger.seed})")


def _evaluate(options: argparse.Namespace) -> None:
    from .ner import WindowTagger
    from .ner.report import scores_page, table

    if options.html:
        _writable(options.html)
    scores = WindowTagger.load(options.model).evaluate(options.file)
    print(json.dumps(scores.to_dict(), indent=2) if options.json else table(scores))
    if options.html:
        _write(options.html, scores_page(scores, f"{options.model} on {options.file}"))


class _Document(NamedTuple):
    """A text with its tokens, sentence by sentence; `tokenised` where they came as such."""

    text: str
    lines: list[list[Token]]
    tokenised: bool


def _tag(options: argparse.Namespace) -> None:
    from .ner import WindowTagger
    from .ner.report import Palette, mark, text_page, use_colour
    from .ner.tagger import in_text

    if options.html:
        _writable(options.html)
    tagger = WindowTagger.load(options.model)
    palette = Palette(tagger.labels)
    colour = use_colour(sys.stdout)
    pages: list[tuple[str, list[Entity]]] = []
    # Someone who types wants the answer line by line.
    at_once = 1 if options.file == "-" and sys.stdin.isatty() else 256
    for document, spans in _tagged(tagger, _documents(options, tagger), at_once):
        kept = [[(s, p) for s, p in line if p >= options.min_score] for line in spans]
        entities = [
            entity
            for tokens, line in zip(document.lines, kept, strict=True)
            for entity in in_text(document.text, tokens, line)
        ]
        if options.format == "color":
            print(mark(document.text, entities, palette, colour), flush=at_once == 1)
        elif options.format == "conll":
            _print_conll(document, kept)
        else:
            print(_json(document, entities, kept))
        if options.html:
            pages.append((document.text, entities))
    if options.html:
        _write(options.html, text_page(pages, f"Entities found by {options.model}", palette))


def _tagged(
    tagger: WindowTagger, documents: Iterable[_Document], at_once: int
) -> Iterator[tuple[_Document, list[list[tuple[Span, float]]]]]:
    def flush(chunk: list[_Document]) -> Iterator[Any]:
        spans = tagger.spans([t for t, _, _ in line] for d in chunk for line in d.lines)
        for document in chunk:
            yield document, [next(spans) for _ in document.lines]

    chunk: list[_Document] = []
    for document in documents:
        chunk.append(document)
        if len(chunk) == at_once:
            yield from flush(chunk)
            chunk = []
    yield from flush(chunk)


def _print_conll(document: _Document, spans: Sequence[Sequence[tuple[Span, float]]]) -> None:
    from .ner import Sentence

    for tokens, line in zip(document.lines, spans, strict=True):
        words = tuple(t for t, _, _ in tokens)
        for word, tag in zip(words, Sentence(words, tuple(s for s, _ in line)).tags, strict=True):
            print(f"{word}\t{tag}")
        if words:
            print()


def _json(
    document: _Document,
    entities: Sequence[Entity],
    spans: Sequence[Sequence[tuple[Span, float]]],
) -> str:
    from .ner import Sentence

    record: dict[str, Any] = {"text": document.text}
    if document.tokenised:
        words = tuple(t for line in document.lines for t, _, _ in line)
        tags = Sentence(words, tuple(s for line in spans for s, _ in line)).tags
        record = {"tokens": words, "tags": tags}
    record["entities"] = [asdict(e) for e in entities]
    return json.dumps(record, ensure_ascii=False)


def _documents(options: argparse.Namespace, tagger: WindowTagger) -> Iterator[_Document]:
    from .ner.corpus import column_blocks, tokenize_lines

    name = "standard input" if options.file == "-" else options.file
    if options.input == "conll":
        text = "\n".join(line for _, line in _lines(options.file, name))
        for _, rows in column_blocks(text, name, 1):
            yield _of_tokens([row[0] for row in rows], tagger.unit)
        return
    for number, line in _lines(options.file, name):
        if options.input == "text":
            yield _Document(line, [list(t) for t in tokenize_lines(line, tagger.unit)], False)
        elif options.input == "tokens":
            yield _of_tokens([t for t in line.split(" ") if t], tagger.unit)
        elif line.strip():
            yield _of_json(line, f"{name}:{number}", tagger.unit)


def _of_tokens(tokens: Sequence[str], unit: str) -> _Document:
    from .ner.corpus import SPACE

    if unit == "character":
        text = "".join(" " if t == SPACE else t for t in tokens)
        blank = 0
    else:
        text, blank = " ".join(tokens), 1
    placed, start = [], 0
    for token in tokens:
        placed.append((token, start, start + len(token)))
        start += len(token) + blank
    return _Document(text, [placed], True)


def _of_json(line: str, where: str, unit: str) -> _Document:
    from .ner.corpus import tokenize_lines

    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if isinstance(record, dict):
        tokens, text = record.get("tokens"), record.get("text")
        if isinstance(tokens, list) and all(isinstance(t, str) and t for t in tokens):
            return _of_tokens(tokens, unit)
        if isinstance(text, str):
            return _Document(text, list(tokenize_lines(text, unit)), False)
    raise DataError(f'{where}: expected {{"text": "..."}} or {{"tokens": ["...", ...]}}')


def _lines(path: str, name: str) -> Iterator[tuple[int, str]]:
    """The lines of a file or of standard input, as they come."""
    try:
        file = sys.stdin.buffer if path == "-" else open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{name}:{number}: not UTF-8 ({error.reason}): convert it to UTF-8 first"
                ) from error
            yield number, text.removesuffix("\n").removesuffix("\r")


def _info(options: argparse.Namespace) -> None:
    from .ner import WindowTagger

    _print_pairs(WindowTagger.load(options.model).info())


# -- calculus --------------------------------------------------------------------------------


LECTURE = "z = W @ x + b; h = tanh(z); s = u.T @ h"
LECTURE_VALUES = (
    "W=[[0.2, -0.5, 0.1, 0.4], [0.7, 0.3, -0.2, 0.6], [-0.4, 0.1, 0.5, -0.1]]",
    "x=[1.0, -0.5, 0.25, 2.0]",
    "b=[0.1, -0.3, 0.2]",
    "u=[1.0, -2.0, 0.5]",
)


def _explain(options: argparse.Namespace) -> None:
    from .explain import explain
    from .expression import evaluate, read_values

    if options.html:
        _writable(options.html)
    if hasattr(sys.stdout, "reconfigure"):  # a terminal without these characters shows escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    expression, words = options.expression, list(options.values)
    if expression is None:
        expression, words = LECTURE, list(LECTURE_VALUES)
        print("The lecture's example, s = uᵀ f(W x + b) with f = tanh.\n")
    s, names = evaluate(expression, read_values(words))
    if s.name is None:
        s.name = "s" if "s" not in names else None
    told = explain(s, **{name: t for name, t in names.items() if t is not s})
    print(told)
    if options.html:
        _write(options.html, told.to_html() + "\n")
        print(f"\nwrote {options.html}")


def _gradcheck(options: argparse.Namespace) -> None:
    from .selfcheck import run

    print(f"{'':<34}  {'shapes':<24}  float64     float32")
    print(f"{'':<34}  {'':<24}  rel. error  ULP")
    wrong = count = 0
    for finding in run():
        check = finding.check
        shapes = " ".join("x".join(map(str, a.shape)) or "()" for a in check.inputs)
        mark = "" if finding.ok else "  WRONG"
        print(
            f"{check.kind:<6} {check.name:<27}  {shapes:<24}  {finding.float64.error:<10.2g}  "
            f"{finding.float32.error:<5.2g}{mark}"
        )
        for report in (finding.float64, finding.float32):
            if not report:
                print(f"       {report}")
        count += 1
        wrong += not finding.ok
    if wrong:
        raise DataError(f"{wrong} of {count} gradients are wrong on this machine")
    print(
        f"all {count} right: float64 against central differences, float32 kernels against the "
        "float64 reference in ULP of the largest element"
    )


# -- bench -----------------------------------------------------------------------------------


def _bench(options: argparse.Namespace) -> None:
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    one["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    command = [sys.executable, "-m", "chainrule.bench", *(["--peers"] if options.peers else [])]
    # A process of its own: numpy and the peers read this when they are imported.
    status = subprocess.run(command, env={**os.environ, **one}, check=False).returncode
    if status:
        raise UsageError(f"bench: stopped with status {status}")


# -- doctor ----------------------------------------------------------------------------------


def _doctor(options: argparse.Namespace) -> None:
    import numpy as np

    import chainrule as cr

    affinity = getattr(os, "sched_getaffinity", None)
    _print_pairs(
        {
            "chainrule": cr.__version__,
            **{k: v for k, v in cr.build_info().items() if k != "version"},
            "cores": os.cpu_count(),
            "cores for this process": len(affinity(0)) if affinity else os.cpu_count(),
            "CHAINRULE_ISA": os.environ.get("CHAINRULE_ISA", "not set"),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
            "numpy": np.__version__,
            "Python": f"{platform.python_implementation()} {platform.python_version()}",
            "system": f"{platform.system()} {platform.machine()}",
        }
    )


def _print_pairs(pairs: dict[str, Any]) -> None:
    width = max(map(len, pairs))
    for key, value in pairs.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        elif isinstance(value, float):
            value = f"{value:.4g}"
        print(f"{key:<{width}}  {'-' if value is None else value}")


if __name__ == "__main__":
    sys.exit(main())
