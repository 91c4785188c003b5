"""--columns: which columns of a table, or keys of an object, hold the texts of an example.

    --columns=query=question,positive=answer
    --columns=query=anchor,positive=positive,negative=negative_1,negative=negative_2
    --columns=query=question,positive=context.contexts,score=label

`query` holds one text. `positive` and `negative` hold a text or a list of texts, and each may be given more than once.
`score` holds the score of the positive, or a list: one score for each positive, or for each positive and then for each
negative. "context.contexts" is the field "contexts" of the object in "context", or of each object of a list there,
unless a column has that whole name. Columns of a .tsv or .csv without a header are numbers, from 1. In data_config.json
"columns" is such a string, or an object: {"query": "question", "positive": "answer", "negative": ["n1", "n2"]}.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from data.examples import BadLine, RawExample, clean_text

ROLES = ("query", "positive", "negative", "score")


class Columns(NamedTuple):
    """Names of columns by role; score may be ""."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    score: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.query, *self.positives, *self.negatives, *filter(None, [self.score]))

    @property
    def are_numbers(self) -> bool:
        return all(name.isascii() and name.isdigit() and name != "0" for name in self.names)


def parse_columns(given: Sequence[str] | str | dict, where: str) -> Columns | None:
    """Columns of a list of "role=name", a string of them with commas, or {role: name or names}; None if empty.

    Raises ValueError that begins with `where`.
    """
    pairs: list[tuple]
    if isinstance(given, dict):
        lists = {role: names if isinstance(names, list) else [names] for role, names in given.items()}
        pairs = [(role, name) for role, names in lists.items() for name in names]
    elif isinstance(given, str) or all(isinstance(each, str) for each in given):
        parts = given.split(",") if isinstance(given, str) else given
        pairs = [tuple(part.strip() for part in each.split("=", 1)) for each in parts if each.strip()]
    else:
        pairs = [()]
    if not pairs:
        return None
    by_role: dict[str, list[str]] = {role: [] for role in ROLES}
    for pair in pairs:
        if len(pair) != 2 or pair[0] not in by_role or not isinstance(pair[1], str) or not pair[1]:
            shown = "=".join(map(str, pair))
            raise ValueError(f"{where}: {shown!r} is not ROLE=COLUMN; the roles are {', '.join(ROLES)}")
        by_role[pair[0]].append(pair[1])
    for role, names in by_role.items():
        if role in ("query", "positive") and not names:
            raise ValueError(f"{where} names no column for {role}: write query=COLUMN,positive=COLUMN")
        if role in ("query", "score") and len(names) > 1:
            raise ValueError(f"{where} names {len(names)} columns for {role}, which takes one: {', '.join(names)}")
    query, positives, negatives, scores = by_role.values()
    return Columns(query[0], tuple(positives), tuple(negatives), (scores or [""])[0])


def as_json(columns: Columns | None) -> dict:
    """{role: names}, as a manifest keeps them and parse_columns reads them; {} for None."""
    if columns is None:
        return {}
    by_role = {"query": columns.query, "positive": list(columns.positives), "negative": list(columns.negatives)}
    return by_role | ({"score": columns.score} if columns.score else {})


def has_columns(values: dict, columns: Columns) -> bool:
    """Whether an object has all of them."""
    try:
        for name in columns.names:
            value_at(values, name)
    except BadLine:
        return False
    return True


def value_at(values: dict, name: str) -> Any:
    """The value of a column; "a.b" is field b of the object in column a, or of each object of a list there."""
    return values[name] if name in values else _value_below(values, name.split("."), name)


def _value_below(value: Any, path: list[str], name: str) -> Any:
    if not path:
        return value
    if isinstance(value, list):
        return [_value_below(each, path, name) for each in value]
    if not isinstance(value, dict) or path[0] not in value:
        raise BadLine(f'there is no column "{name}"')
    return _value_below(value[path[0]], path[1:], name)


def example_by_columns(values: dict, columns: Columns) -> RawExample:
    """The example in an object or a row. Raises BadLine that names the column."""
    query = _texts(values, columns.query)
    if isinstance(query, tuple):
        raise BadLine(f'column "{columns.query}" holds a list: the query is one text')
    positives = [_texts(values, name) for name in columns.positives]
    negatives = [_texts(values, name) for name in columns.negatives]
    flat_positives, flat_negatives = _flat(positives), _flat(negatives)
    if not flat_positives:
        raise BadLine(f'column "{columns.positives[0]}" has no text')
    scores = None
    if columns.score:
        scores = _scores(value_at(values, columns.score), columns.score, len(flat_positives), len(flat_negatives))
    texts = (query, *flat_positives, *flat_negatives)
    one_each = len(positives) == 1 and len(negatives) <= 1
    if one_each and scores is None and all(isinstance(each, str) for each in positives + negatives):
        return RawExample("triplet" if negatives else "pair", texts, 1)
    return RawExample("lists", texts, len(flat_positives), scores)


def _texts(values: dict, name: str) -> str | tuple[str, ...]:
    value = value_at(values, name)
    try:
        return tuple(map(clean_text, value)) if isinstance(value, list) else clean_text(value)
    except BadLine as reason:
        raise BadLine(f'column "{name}": ' + ("null" if value is None else str(reason))) from None


def _flat(columns: list[str | tuple[str, ...]]) -> list[str]:
    return [text for column in columns for text in (column if isinstance(column, tuple) else [column])]


def _scores(value: Any, name: str, num_positives: int, num_negatives: int) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    scores = tuple(score_of(each, f'column "{name}"') for each in values)
    if len(scores) not in (num_positives, num_positives + num_negatives):
        raise BadLine(f'column "{name}" does not have one score for each positive, or for each positive and negative')
    return scores + (float("nan"),) * (num_positives + num_negatives - len(scores))


def score_of(value: Any, what: str) -> float:
    """A number, or the text of one in a table, as a float that float32 holds; NaN is no score."""
    if isinstance(value, bool) or not (isinstance(value, str) or hasattr(value, "__float__")):
        raise BadLine(f"{what} is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise BadLine(f"{what} is not a number that float32 holds") from None
    if abs(number) > 3.4028234e38:
        raise BadLine(f"{what} is not a number that float32 holds")
    return number
