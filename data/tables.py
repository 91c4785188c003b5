"""Parquet files in blocks of rows. The main process reads columns, workers make rows of them.

A text column may be of any of Arrow's string types, dictionary-encoded or not, or a list of them. pyarrow is an extra.
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data.columns import Columns
from data.examples import BadLine
from data.formats import FORMS, QUERY_KEYS

MOST_ROWS = 8192  # of a block
ROWS_AT_ONCE = 64  # read by pyarrow: a text that Parquet stores once may come in every row
SCORE_KEYS = ("pos_scores", "neg_scores")


class Table(NamedTuple):
    """An open Parquet file."""

    file: Any  # pyarrow.parquet.ParquetFile
    names: tuple[str, ...]  # of its columns, those of pandas' index left out
    wanted: tuple[str, ...]  # columns that are read; "a.b" is a field of a struct, or of the structs of a list


def open_table(path: Path, columns: Columns | None) -> Table:
    """Opens a Parquet file and checks that it has the columns, or those of a training format, of types that fit.

    Raises ValueError that names the file and the column.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path}: Parquet files need pyarrow: pip install -e '.[parquet]'") from error
    with named_damage(path):
        file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    schema = file.schema_arrow
    names = tuple(name for name in schema.names if not name.startswith("__index_level_"))
    if not file.metadata.num_rows:
        raise ValueError(f"{path}: the file has no rows")
    if columns is None:
        form = next((form for form in FORMS if form <= set(names)), None)
        if form is None:
            described = ", ".join(f"{name} ({schema.field(name).type})" for name in names)
            raise ValueError(f"{path}: its columns are {described}: name those of the texts, as in "
                             "--columns=query=question,positive=answer")
        wanted = tuple(name for name in names if name in (form if "query" not in form else QUERY_KEYS))
        scores, single = SCORE_KEYS, ("query",)
    else:
        wanted, scores, single = columns.names, (columns.score,), (columns.query,)
    for name in dict.fromkeys(wanted):
        _check_type(path, name, _type_of(path, schema, name), name in scores, name in single)
    return Table(file, names, tuple(dict.fromkeys(map(functools.partial(_to_read, schema), wanted))))


@contextlib.contextmanager
def named_damage(path: Path) -> Iterator[None]:
    """Turns pyarrow's errors into a ValueError that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path}: damaged Parquet file: {str(error).splitlines()[0]}") from error


def _type_of(path: Path, schema: Any, name: str) -> Any:
    """The Arrow type of a column; of a field of a struct ("a.b"), or of the structs of a list: a list of its type."""
    import pyarrow

    if name in schema.names:
        return schema.field(name).type
    first, *fields = name.split(".")
    found, lists = (schema.field(first).type if first in schema.names else None), 0
    for field in fields:
        while found is not None and _is_list(found):
            found, lists = found.value_type, lists + 1
        inner = pyarrow.types.is_struct(found) if found is not None else False
        names = [found.field(i).name for i in range(found.num_fields)] if inner else []
        found = found.field(names.index(field)).type if field in names else None
    if found is None:
        raise ValueError(f'{path}: there is no column "{name}": it has {", ".join(schema.names)}')
    for _ in range(lists):
        found = pyarrow.list_(found)
    return found


def _to_read(schema: Any, name: str) -> str:
    """The name by which pyarrow reads a column: it cannot name a field of the structs of a list."""
    if name in schema.names:
        return name
    first, *fields = name.split(".")
    kind, read = schema.field(first).type, [first]
    for field in fields:
        if _is_list(kind):
            break
        kind = kind.field(kind.get_field_index(field)).type
        read.append(field)
    return ".".join(read)


def _check_type(path: Path, name: str, kind: Any, is_score: bool, is_single: bool) -> None:
    import pyarrow

    types = pyarrow.types
    is_list = _is_list(kind)
    value = kind.value_type if is_list else kind
    if types.is_dictionary(value):
        value = value.value_type
    if is_score:
        fits = types.is_integer(value) or types.is_floating(value) or types.is_decimal(value)
        wanted = "a number or a list of numbers"
    else:
        fits = types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)
        fits = fits and not (is_single and is_list)
        wanted = "a text" if is_single else "a text or a list of texts"
    if not fits:
        inside = _inside(name, kind)
        raise ValueError(f'{path}: column "{name}" has the type {kind}, and {wanted} is needed{inside}')


def _is_list(kind: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    return any(is_kind(kind) for is_kind in (
        types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view))


def _inside(name: str, kind: Any) -> str:
    """Advice for a struct: how its fields are named."""
    import pyarrow

    kind = kind.value_type if _is_list(kind) else kind
    if not pyarrow.types.is_struct(kind):
        return ""
    return ": name one of " + ", ".join(f"{name}.{kind.field(i).name}" for i in range(kind.num_fields))


def table_blocks(path: Path, table: Table, block_bytes: int) -> Iterator[tuple[int, bytes, float]]:
    """(number of the first row, rows in Arrow's stream format, share of the rows read so far); rows count from 1.

    A block has about block_bytes bytes, and at least one row.
    """

    metadata = table.file.metadata
    largest = max(metadata.row_group(i).total_byte_size / max(1, metadata.row_group(i).num_rows)
                  for i in range(metadata.num_row_groups))
    rows = max(1, min(ROWS_AT_ONCE, int(block_bytes / max(1.0, largest))))
    number, block, size = 1, [], 0  # the batches of a block, and their bytes
    with named_damage(path):
        for batch in table.file.iter_batches(rows, columns=list(table.wanted), use_threads=False):
            block.append(batch)
            size += batch.nbytes
            if size >= block_bytes or len(block) * rows >= MOST_ROWS:
                yield number, _as_stream(block), number / metadata.num_rows
                number, block, size = number + sum(each.num_rows for each in block), [], 0
        if block:
            yield number, _as_stream(block), 1.0


def _as_stream(batches: list) -> bytes:
    """Arrow's stream format, which rows_of_block reads."""
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def rows_of_block(content: bytes) -> Iterator[dict | BadLine]:
    """The rows of a block, as objects; a reason for a row whose text is not UTF-8."""
    import pyarrow

    table = pyarrow.ipc.open_stream(content).read_all()
    try:
        yield from table.to_pylist()
    except UnicodeDecodeError:
        for row in range(table.num_rows):
            try:
                yield table.slice(row, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield BadLine("not valid UTF-8")
