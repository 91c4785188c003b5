"""Files of sentences and their translations: NTREX-128 and Tatoeba, as JSON lines or as the published plain text.

NTREX-128 (Federmann et al. 2022) has the 1,997 English sentences of newstest2019 in 128 languages. Tatoeba, in LASER's
version (Artetxe and Schwenk 2019), has up to 1,000 sentences in each of 112 languages, with their English translations.

Legend: n = rows of a language.
"""

import functools
import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from evaluation.files.lines import aligned_lines, all_lines, check_text, json_objects
from evaluation.task import MissingData, data_folder
from flags import nearest

COMPLETE = {"ntrex": (128, 128 * 1997), "tatoeba": (112, 88877)}  # languages and pairs of the published sets
JSON_FILES = {"ntrex": "ntrex128.jsonl", "tatoeba": "tatoeba_v1.jsonl"}
FOLDERS = {"ntrex": "NTREX-128", "tatoeba": "tatoeba/v1"}
NTREX_SOURCE = "newstest2019-src.eng.txt"
NTREX_REFERENCE = re.compile(r"newstest2019-ref(?:-(\d))?\.(.+)\.txt")  # ref-2.spa is the second Spanish, spa_2
TATOEBA_FILE = re.compile(r"tatoeba\.(.+)-eng\.(\1|eng)")


ISO_639_1 = dict(pair.split(":") for pair in (  # noqa: SIM905
    "af:afr am:amh ar:ara az:aze be:bel bg:bul bn:ben bo:bod bs:bos ca:cat cs:ces cy:cym da:dan de:deu el:ell es:spa "
    "et:est eu:eus fa:fas fi:fin fr:fra ga:gle gl:glg gu:guj ha:hau he:heb hi:hin hr:hrv hu:hun hy:hye id:ind is:isl "
    "it:ita ja:jpn ka:kat kk:kaz km:khm kn:kan ko:kor ku:kmr lo:lao lt:lit lv:lav mk:mkd ml:mal mn:mon mr:mar ms:msa "
    "mt:mlt my:mya nb:nob ne:nep nl:nld nn:nno no:nob pa:pan pl:pol ps:pus pt:por ro:ron ru:rus sd:snd si:sin sk:slk "
    "sl:slv so:som sq:sqi sr:srp sv:swe sw:swa ta:tam te:tel th:tha tr:tur uk:ukr ur:urd uz:uzb vi:vie zh:zho "
).split())


class Bitext(NamedTuple):
    """One language: row i of either list is the translation of row i of the other."""

    sources: list[str]  # n, in English
    translations: list[str]  # n


def read_bitexts(data_dir: str, name: str, languages: Sequence[str] = ()) -> dict[str, Bitext]:
    """{language: its rows} of the task `name`, ntrex or tatoeba, in the given languages (empty: all).

    Reads the first of these that exists in data_dir/multilingual, then in data_dir itself: ntrex128.jsonl[.gz], one
    JSON object per line with "id", "eng" and every other language by its code, or tatoeba_v1.jsonl[.gz], one {"lang",
    "text", "eng"} per line; the plain text, one sentence per line, in the folder NTREX-128 or tatoeba/v1 or without it.

    Raises ValueError naming file:line for a line that is not such an object, a text that is missing or empty and files
    of unequal length; and for a language that the files do not have.
    """
    root = data_folder(data_dir)
    read_lines, find_files = {"ntrex": (_ntrex_lines, _ntrex_files), "tatoeba": (_tatoeba_lines, _tatoeba_files)}[name]
    for folder in (root / "multilingual", root):
        for path in (folder / JSON_FILES[name], folder / f"{JSON_FILES[name]}.gz"):
            if path.is_file():
                return _chosen(read_lines(path), languages, path)
        for place in (folder / FOLDERS[name], folder):
            if files := find_files(place):
                return _read_plain(_chosen(files, languages, place))
    raise MissingData(f"--suite={name}: --data_dir={data_dir} has no {JSON_FILES[name]}, {JSON_FILES[name]}.gz or "
                      f"{FOLDERS[name]}, nor has its folder multilingual")


def _chosen(by_language: dict, languages: Sequence[str], path: pathlib.Path) -> dict:
    unknown = [language for language in languages if language not in by_language]
    if unknown:
        near = dict.fromkeys(filter(None, (_nearest_code(language, list(by_language)) for language in unknown)))
        advice = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(list(by_language)[:8])} ..."
        raise ValueError(f"--languages={','.join(languages)}: {path} has no {', '.join(unknown)}; {advice}")
    return {language: by_language[language] for language in languages or by_language}


def _nearest_code(language: str, codes: list[str]) -> str:
    """The code in the files that is nearest to a two-letter or misspelt code; "" if none is near."""
    wanted = ISO_639_1.get(language[:2].lower(), language.lower()) if len(language) < 6 else language.lower()
    beginning = [code for code in codes if code.lower().startswith(wanted)]
    return beginning[0] if beginning else nearest(wanted, codes)


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
    read = functools.cache(lambda path: list(all_lines(path)))  # the source is shared by all languages
    bitexts = {}
    for language, paths in files.items():
        rows = list(aligned_lines(*paths, read=read))
        for place, text in itertools.chain(*rows):
            if not text.strip():
                raise ValueError(f"{place}: the line is empty")
        if not rows:
            raise ValueError(f"{paths[1]} has no lines")
        bitexts[language] = Bitext(*([text.strip() for _, text in side] for side in zip(*rows)))
    return bitexts
