"""Named entities: corpora, word vectors, and a tagger that classifies windows of words."""

from .corpus import Sentence, Span, read_conll, read_jsonl, read_marked, read_sentences
from .scores import Score, Scores, score
from .tagger import Entity, WindowTagger
from .vectors import Vectors, read_vectors

__all__ = [
    "Entity",
    "Score",
    "Scores",
    "Sentence",
    "Span",
    "Vectors",
    "WindowTagger",
    "read_conll",
    "read_jsonl",
    "read_marked",
    "read_sentences",
    "read_vectors",
    "score",
]
