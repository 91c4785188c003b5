"""Files of sentences and their translations: NTREX-128 and Tatoeba, as JSON lines or as the plain text published.

NTREX-128 (Federmann et al. 2022) is the 1,997 English sentences of newstest2019 in 128 languages; Tatoeba, as LASER has
it (Artetxe and Schwenk 2019), up to 1,000 sentences in each of 112 languages, each with English sentences of its own.

Legend: m = rows of a language.
"""

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from evaluation.files.lines import check_text, json_objects, numbered_lines
from evaluation.task import MissingData

COMPLETE = {"ntrex": (128, 128 * 1997), "tatoeba": (112, 88877)}  # languages and pairs of the published sets
JSON_FILES = {"ntrex": "ntrex128.jsonl", "tatoeba": "tatoeba_v1.jsonl"}
FOLDERS = {"ntrex": "NTREX-128", "tatoeba": "tatoeba/v1"}
NTREX_SOURCE = "newstest2019-src.eng.txt"
NTREX_REFERENCE = re.compile(r"newstest2019-ref(?:-(\d))?\.(.+)\.txt")  # ref-2.spa is the second Spanish, spa_2
TATOEBA_FILE = re.compile(r"tatoeba\.(.+)-eng\.(\1|eng)")


class Bitext(NamedTuple):
    """One language: row i of either list is the translation of row i of the other."""

    sources: list[str]  # m, in English
    translations: list[str]  # m


def read_bitexts(data_dir: str, name: str, languages: Sequence[str] = ()) -> dict[str, Bitext]:
    """{language: its rows} of the task `name`, ntrex or tatoeba, in the languages given (empty: all there are).

    Read is the first of these in data_dir/multilingual and then in data_dir itself: ntrex128.jsonl[.gz], a JSON object
    a line of "id", "eng" and every other language by its code, or tatoeba_v1.jsonl[.gz], {"lang", "text", "eng"} a
    line; the plain text, a sentence a line, in the folder NTREX-128 or tatoeba/v1 or without such a folder.

    Raises ValueError naming file:line for a line that is no such object, a text that is missing or empty and files of
    unequal length; and for a language that is not there.
    """
    if not pathlib.Path(data_dir or ".").is_dir():
        raise ValueError(f"--data_dir={data_dir} is not a folder")
    read_lines, find_files = {"ntrex": (_ntrex_lines, _ntrex_files), "tatoeba": (_tatoeba_lines, _tatoeba_files)}[name]
    for folder in (pathlib.Path(data_dir, "multilingual"), pathlib.Path(data_dir)):
        for path in (folder / JSON_FILES[name], folder / f"{JSON_FILES[name]}.gz"):
            if path.is_file():
                return _chosen(read_lines(path), languages, path)
        for place in (folder / FOLDERS[name], folder):
            if files := find_files(place):
                return _read_plain(_chosen(files, languages, place))
    raise MissingData(f"--suite={name}: --data_dir={data_dir} has no {JSON_FILES[name]}, {JSON_FILES[name]}.gz or "
                     f"{FOLDERS[name]}, neither in multilingual nor itself")


def _chosen(by_language: dict, languages: Sequence[str], path: pathlib.Path) -> dict:
    unknown = [language for language in languages if language not in by_language]
    if unknown:
        raise ValueError(f"--languages={','.join(languages)}: {path} has no {', '.join(unknown)}; it has "
                         f"{', '.join(by_language)}")
    return {language: by_language[language] for language in languages or by_language}


def _ntrex_lines(path: pathlib.Path) -> dict[str, Bitext]:
    sources, columns, first = [], {}, ""
    for place, row in json_objects(path):
        texts = {key: _text(row, key, place) for key in row if key != "id"}
        sources.append(_text(row, "eng", place))
        del texts["eng"]
        if not first:
            first, columns = place, {language: [] for language in texts}
        if texts.keys() != columns.keys():
            differing = ", ".join(sorted(texts.keys() ^ columns.keys()))
            raise ValueError(f"{place}: either this line or {first} lacks {differing}")
        for language, text in texts.items():
            columns[language].append(text)
    if not sources:
        raise ValueError(f"{path} has no lines")
    return {language: Bitext(sources, translations) for language, translations in columns.items()}


def _tatoeba_lines(path: pathlib.Path) -> dict[str, Bitext]:
    bitexts = {}
    for place, row in json_objects(path):
        language, text, english = (_text(row, key, place) for key in ("lang", "text", "eng"))
        bitext = bitexts.setdefault(language, Bitext([], []))
        bitext.sources.append(english)
        bitext.translations.append(text)
    if not bitexts:
        raise ValueError(f"{path} has no lines")
    return bitexts


def _text(row: dict, key: str, place: str) -> str:
    if key not in row:
        raise ValueError(f"{place}: {key!r} is missing")
    check_text(row[key], f"{place}: {key!r}")
    return row[key].strip()


def _ntrex_files(folder: pathlib.Path) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
    """{language: (file of the sources, file of the translations)}."""
    files = {}
    for path in sorted(folder.glob("newstest2019-ref*.txt")):
        if match := NTREX_REFERENCE.fullmatch(path.name):
            number, language = match.groups()
            files[f"{language}_{number}" if number else language] = (folder / NTREX_SOURCE, path)
    return files


def _tatoeba_files(folder: pathlib.Path) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
    """{language: (file of the sources, file of the translations)}."""
    files = {}
    for path in sorted(folder.glob("tatoeba.*-eng.*")):
        if match := TATOEBA_FILE.fullmatch(path.name):
            language = match[1]
            files[language] = tuple(folder / f"tatoeba.{language}-eng.{side}" for side in ("eng", language))
    return files


def _read_plain(files: dict[str, tuple[pathlib.Path, pathlib.Path]]) -> dict[str, Bitext]:
    texts = {path: _plain_lines(path) for path in dict.fromkeys(path for pair in files.values() for path in pair)}
    bitexts = {}
    for language, (source, translation) in files.items():
        shorter, longer = sorted((source, translation), key=lambda path: len(texts[path]))
        if len(texts[shorter]) < len(texts[longer]):
            raise ValueError(f"{shorter}:{len(texts[shorter]) + 1}: the file ends after {len(texts[shorter])} lines, "
                             f"{longer.name} after {len(texts[longer])}")
        bitexts[language] = Bitext(texts[source], texts[translation])
    return bitexts


def _plain_lines(path: pathlib.Path) -> list[str]:
    texts = []
    for place, line in numbered_lines(path):
        if not line.strip():
            raise ValueError(f"{place}: the line is empty")
        texts.append(line.strip())
    if not texts:
        raise ValueError(f"{path} has no lines")
    return texts
