"""Translations: Tatoeba, TED talks, OPUS's Moses files and TMX. All become .tsv files of columns, source text first.

`prepare --tsv=parallel` reads them: the first column is the query, any other one its translation.
"""

import collections
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from data.mine.published.aligned import Side, aligned_lines, names_in
from data.mine.published.joining import JoinSettings, grouped
from data.mine.published.records import (
    BadRecord,
    Layout,
    Results,
    files_in,
    one_line,
    results_of,
    tab_cells,
    tab_table,
    text,
    whole,
)
from data.mine.reading import CHUNK_BYTES, damage_named, plain_name
from data.mine.source import Counts, Unit
from data.mine.xml_reading import elements
from flags import flag

NO_TRANSLATION = "sentence without a translation"


@dataclasses.dataclass(frozen=True)
class TatoebaSettings(JoinSettings):
    source_language: str = flag("eng", "language of the first column: Tatoeba's code of three letters")
    target_languages: tuple[str, ...] = flag((), "comma-separated codes of the languages of the second column; "
                                                 "none: all")


TATOEBA = Layout("Tatoeba's sentences.csv (id, language, text between tabs) and links.csv (id, id of a translation), "
                 "or their .tar.bz2 files", tab_cells(), r"\.(csv|tsv)$")
_CODE = re.compile(r"[A-Za-z0-9_-]{2,12}")


def scatter_tatoeba(unit: Unit, settings: TatoebaSettings, counts: Counts) -> Results:
    """(sentence id, ["target", language, text] or ["source", text of a sentence that it translates])."""
    for records in grouped(results_of(unit, TATOEBA, counts, _tatoeba_record), settings, counts):
        sentence = next((record for record in records if len(record) == 3), None)
        if sentence is None:
            counts["links of a sentence that is not among the inputs"] += 1
            continue
        number, language, said = sentence
        if language == settings.source_language:
            for other in [record[0] for record in records if len(record) == 1]:
                yield other, ["source", said]
        elif language in settings.target_languages or not settings.target_languages:
            yield number, ["target", language, said]


def _tatoeba_record(cells: list[str]) -> Results:
    if not cells[0].isdigit() or len(cells) < 2 or (len(cells) == 2 and not cells[1].isdigit()):
        raise BadRecord("is neither id<TAB>language<TAB>text nor id<TAB>id")
    if len(cells) == 2:
        yield cells[0], [cells[1]]
    else:
        yield cells[0], [cells[0], cells[1], one_line(whole(cells[2]))]


def join_tatoeba(records: list[Any], settings: TatoebaSettings, counts: Counts) -> Results:
    """(source sentence, translation), in one file for each target language."""
    target = next((record for record in records if record[0] == "target"), None)
    sources = list(dict.fromkeys(record[1] for record in records if record[0] == "source"))
    if target is None:
        counts["translation into another language than --target_languages"] += len(sources)
        return
    _, language, said = target
    if not sources:
        counts["sentence without a translation into --source_language"] += 1
    elif not _CODE.fullmatch(language):  # \N: unknown
        counts["sentence of no known language"] += 1
    else:
        for source in sources:
            yield f"tatoeba_{settings.source_language}-{language}.tsv", [source, said]


@dataclasses.dataclass(frozen=True)
class ColumnSettings:
    source_language: str = flag("en", "language of the first column: its code in the file's header")
    target_languages: tuple[str, ...] = flag((), "comma-separated codes of the languages of the other columns; "
                                                 "none: all")


TED = Layout("TED talks' all_talks_train.tsv, a header of talk_name and language codes, then on each line a sentence "
             "in all languages", tab_table, r"train\.tsv$")
_NO_TEXT = re.compile(r"^_*\s*_*\s*NULL\s*_*\s*_*$")


def mine_ted(unit: Unit, settings: ColumnSettings, counts: Counts) -> Results:
    """The sentence in the source language, then its translations."""
    def convert(row: Any) -> Results:
        source = _ted_text(text(row, settings.source_language))
        languages = settings.target_languages or [
            name for name in row if name not in ("talk_name", settings.source_language)]
        targets = list(filter(None, dict.fromkeys(_ted_text(text(row, language)) for language in languages)))
        return _columns("ted", source, targets, settings, counts)
    return results_of(unit, TED, counts, convert)


def _ted_text(cell: str) -> str:
    return "" if _NO_TEXT.match(cell) else one_line(unescape(cell))


def _columns(output: str, source: str, targets: list[str], settings: ColumnSettings, counts: Counts) -> Results:
    targets = [target for target in targets if target != source]
    if not source:
        counts[f"no text in the language --source_language={settings.source_language}"] += 1
    elif not targets:
        counts[NO_TRANSLATION] += 1
    else:
        yield f"{output}.tsv", [source, *targets]


@dataclasses.dataclass(frozen=True)
class MosesSettings:
    source_language: str = flag("en", "language of the first column; the first one of the file's name if neither is "
                                     "this one")


MOSES = ("OPUS's Moses files: two text files of equally many lines such as Tatoeba.de-en.de and Tatoeba.de-en.en, or "
         "the zip file of both")
_MOSES_NAME = re.compile(r"(?:^|/)(?P<stem>[^/]*?(?P<first>[\w]+)-(?P<second>[\w]+))\.(?P<side>[\w]+)(\.txt)?$")


def moses_units(paths: Sequence[Path]) -> list[Unit]:
    """The files with the same NAME.LANGUAGE-LANGUAGE belong together."""
    together: dict[str, list[Path]] = collections.defaultdict(list)
    for path in paths:
        match = _MOSES_NAME.search(plain_name(path))
        together[str(path.parent / match["stem"]) if match else str(path)].append(path)
    return [tuple(each) for each in together.values()]


def mine_moses(unit: Unit, settings: MosesSettings, counts: Counts) -> Results:
    """(sentence, translation), in one file for each pair of files."""
    sides: dict[str, dict[str, Side]] = collections.defaultdict(dict)
    for path in unit:
        for name in names_in(path, counts):
            match = _MOSES_NAME.search(name)
            if match and match["side"] in (match["first"], match["second"]):
                sides[match["stem"]][match["side"]] = Side(path, "" if name == plain_name(path) else name)
    if not sides:
        raise ValueError(f"{unit[0]} holds no file whose name is that of one side; expected {MOSES}")
    for stem, found in sides.items():
        match = _MOSES_NAME.search(f"{stem}.x")
        languages = [match["first"], match["second"]]
        languages.sort(key=lambda language: language != settings.source_language)
        if missing := [language for language in languages if language not in found]:
            raise ValueError(f"{next(iter(found.values()))} is one side only: {stem}.{missing[0]} is not among the "
                             f"inputs; expected {MOSES}")
        for source, target in aligned_lines([found[language] for language in languages], counts):
            if not source or not target:
                counts["line that is empty on one side"] += 1
            elif source == target:
                counts["the same text on both sides"] += 1
            else:
                yield f"{stem}.tsv", [source, target]


TMX = 'a TMX file: <tmx><body><tu><tuv xml:lang="en"><seg>..</seg></tuv>..</tu></body></tmx>, plain, .gz or .zip'
_LANGUAGE = ("{http://www.w3.org/XML/1998/namespace}lang", "http://www.w3.org/XML/1998/namespace}lang", "lang")
_CODES = ("bpt", "ept", "it", "ph", "ut")  # elements of a segment that hold codes of a format, not text


def mine_tmx(unit: Unit, settings: ColumnSettings, counts: Counts) -> Results:
    """The segment in the source language, then its translations; in one file for each TMX file."""
    for path in unit:
        found, notes = 0, len(counts.notes)
        with damage_named(path, counts):
            for name, file in files_in(path, r"\.tmx(\.gz)?$"):
                try:
                    for element in _units_of_text(name, file, counts):
                        found += 1
                        source, targets = _segments(element, settings)
                        yield from _columns(Path(plain_name(path)).stem, source, targets, settings, counts)
                except ValueError as error:
                    raise ValueError(f"{error}; expected {TMX}") from error
        if not found:
            raise ValueError("; ".join([f"{path} holds no translation unit <tu>", *counts.notes[notes:],
                                        f"expected {TMX}"]))


def _units_of_text(name: str, file: io.BufferedReader, counts: Counts) -> Iterator[Element]:
    chunks = iter(lambda: file.read1(CHUNK_BYTES), b"")
    return elements(chunks, name, ("tu",), counts, root="tmx", external_type=True)


def _segments(element: Element, settings: ColumnSettings) -> tuple[str, list[str]]:
    source, targets = "", []
    for variant in element.iter("tuv"):
        language = next((variant.get(key) for key in _LANGUAGE if variant.get(key)), "")
        said = one_line("".join(_text_of(segment) for segment in variant.iter("seg")))
        if _is(language, settings.source_language):
            source = source or said
        elif said and any(_is(language, wanted) for wanted in settings.target_languages or (language,)):
            targets.append(said)
    return source, list(dict.fromkeys(targets))


def _is(language: str, wanted: str) -> bool:
    """Whether en-US or EN is en."""
    language, wanted = language.lower().replace("_", "-"), wanted.lower().replace("_", "-")
    return language == wanted or language.startswith(wanted + "-")


def _text_of(segment: Element) -> str:
    parts = [segment.text or ""]
    for child in segment:
        parts += ["" if child.tag in _CODES else _text_of(child), child.tail or ""]
    return "".join(parts)
