"""Published sources on files that are wrong, cut short or damaged: an error that names the file, or counted records."""

import bz2
import gzip
import json
import os
import random
import re

import pytest

from data.mine.published import records
from data.mine.published.records import BAD
from data.mine.published.sources import PUBLISHED
from tests.data.mine.published_files import CASES, SQUAD, json_lines, mined, mined_in_memory, packed, write_files

FIRST_SEED = int(os.environ.get("ALLPAIRS_FUZZ_SEED", 0))
FIRST_CASES = [next(case for case in CASES if case.source == source.name) for source in PUBLISHED]
OTHER_FILES = {
    "objects with other keys": json_lines({"a": 1}, {"a": 2}),
    "a JSON list": "[1, 2]",
    "text": "Some words.\nAnd more words.\n",
    "bytes": b"\x89PNG\r\n\x1a\n" + bytes(range(128, 256)) * 4,
    "nothing": b"",
    "a page": "<!DOCTYPE html>\n<html><body>404 not found</body></html>\n",
    "a zip file of something else": packed("a.zip", {"photo.jpg": b"\xff\xd8\xff" * 9}),
}


@pytest.mark.parametrize("what", OTHER_FILES)
@pytest.mark.parametrize("case", FIRST_CASES, ids=lambda case: case.source)
def test_a_wrong_file_is_named_with_what_was_expected(case, what, tmp_path):
    write_files(tmp_path, case.files)
    name = next(iter(case.files))
    (tmp_path / name).write_bytes(packed("", OTHER_FILES[what]))
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / name))}.*expected ") as error:
        mined_in_memory(case.source, [tmp_path / name for name in case.files], **(case.flags or {}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source, files, message", [
    ("gooaq", {"a.jsonl": json_lines({"query": "a", "answer": "b"})},
     r"a\.jsonl: line 1 has no field 'question'; expected GOOAQ's gooaq\.jsonl, lines of \{\"question\": \.\., "),
    ("gooaq", {"a.jsonl": json_lines({"question": 7, "answer": "b"})}, r"line 1 field 'question' is a int, not a str"),
    ("squad", {"a.json": '{"Data": []}'}, r"a\.json: it has no key 'data'; expected SQuAD"),
    ("squad", {"a.json": '{"data": {}}'}, r"a\.json: data is not an array; expected SQuAD"),
    ("squad", {"a.json": json.dumps(SQUAD).replace("qas", "qs")},
     r"a\.json: data\[0\] has no field 'qas'; expected SQuAD"),
    ("coco", {"a.json": '{"annotations": [{"image_id": 1, "caption": "a"}, {"image_id" 2}]}'},
     r"a\.json: not JSON: Expecting ':' delimiter at character \d+; expected COCO"),
    ("paws", {"a.tsv": "id\ta\tb\tlabel\n1\tx\ty\t1\n"}, r"a\.tsv: line 2 has no field 'sentence1'; expected PAWS"),
    ("yahoo_answers", {"a.csv": "class,title\n1,b\n"}, r"a\.csv: line 1 is not a row of a class number, title"),
    ("moses", {"x.de-en.de": "a\nb\n", "x.de-en.en": "a\n"}, r"x\.de-en\.en has 1 lines and .*x\.de-en\.de has more"),
    ("moses", {"x.de-en.de": "a\n"}, r"x\.de-en\.de is one side only: x\.de-en\.en is not among the inputs"),
    ("simple_wikipedia", {"normal.aligned": "a\n"},
     r"one file for each side is needed, found .*normal\.aligned; no file"),
    ("tmx", {"a.tmx": "<tmx><!DOCTYPE x [<!ENTITY a 'b'>]></tmx>"}, r"a\.tmx: line 1: not well-formed"),
    ("tmx", {"a.tmx": "<!DOCTYPE tmx [<!ENTITY a 'b'>]><tmx>&a;</tmx>"}, r"a\.tmx: the XML has a document type decl"),
    ("tmx", {"a.tmx": "<html></html>"}, r"a\.tmx: the root element is <html>, not <tmx>"),
    ("msmarco", {"triples.tsv": "1\t2\t3\n"}, r"triples\.tsv: line 1 has ids, not texts"),
    ("triviaqa", {"a.json": json.dumps({"Data": [{"Question": "a", "QuestionId": "1", "Answer": {"Value": "b"},
                                                  "SearchResults": []}]})}, r"no file of the inputs is TriviaQA's evi"),
    ("paq", {"PAQ.jsonl": json_lines({"question": "a", "answer": ["b"]})},
     r"PAQ\.jsonl: line 1 has no field 'answers'"),
])
def test_messages(source, files, message, tmp_path):
    write_files(tmp_path, files)
    with pytest.raises(ValueError, match=message):
        mined(source, [tmp_path / name for name in files], tmp_path / "out")


def test_records_of_another_shape_are_counted_and_the_first_is_named(tmp_path):
    good = {"question": "a", "answer": "b"}
    (tmp_path / "a.jsonl").write_bytes(json_lines(good, {"question": "a"}).encode() + b"\n\n{\n" + json_lines(
        {"question": "a", "answer": ["b"]}, [], good).encode() + b'{"question": "\xff", "answer": "b"}\n')
    lines, manifest = mined("gooaq", [tmp_path / "a.jsonl"], tmp_path / "out")
    assert lines == {"gooaq_pairs": [["a", "b"]] * 2} and manifest["left_out"] == {BAD: 5}
    assert manifest["notes"] == [
        f"{tmp_path}/a.jsonl: 5 of 7 records are of another shape; the first: line 2 has no field 'answer'"]


def test_a_quote_that_is_never_closed_costs_one_field(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_FIELD", 1000)
    (tmp_path / "a.csv").write_text('"1","t","","a"\n"1","t","","' + "x " * 600 + '\n"1","u","","b"\n')
    lines, manifest = mined("yahoo_answers", [tmp_path / "a.csv"], tmp_path / "out")
    assert lines == {"yahoo_answers_title_answer": [["t", "a"], ["u", "b"]]} and manifest["left_out"][BAD] == 1


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, bytes])
@pytest.mark.parametrize("source", ["gooaq", "squad", "wikihow"])
def test_what_is_whole_of_a_truncated_file_is_mined(source, pack, tmp_path):
    """Each line and each element before the cut is there, and the manifest says that the file is cut short."""
    noise, lines = random.Random(0), 20_000  # enough for two blocks of bzip2
    words = [" ".join(f"{noise.getrandbits(40):x}" for _ in range(4)) for _ in range(lines)]
    content, output = {
        "gooaq": (json_lines(*({"question": word, "answer": word} for word in words)), "gooaq_pairs"),
        "squad": (json.dumps({"data": [{"paragraphs": [{"context": word, "qas": [{"question": word, "answers": [{}]}]}]}
                                       for word in words]}), "squad_pairs"),
        "wikihow": ("overview,title\n" + "".join(f'"{word}.",{word} x\n' for word in words), "wikihow"),
    }[source]
    whole = pack(content.encode())
    (tmp_path / "cut").write_bytes(whole[:int(len(whole) * 0.7)])
    found, manifest = mined(source, [tmp_path / "cut"], tmp_path / "out")
    assert len(found[output]) > 0.4 * lines or pack is bz2.compress
    assert all(query.removesuffix(" x") == text.rstrip(".") for query, text in found[output][:-1])
    if pack is not bytes or source == "squad":
        assert any("is cut short, what is whole was mined" in note for note in manifest["notes"])


def damaged(content: bytes, noise: random.Random) -> bytes:
    """The content, which is not empty, with bits flipped, a piece missing, or JSON's and tables' tokens replaced."""
    if (kind := noise.randrange(4)) == 0:
        changed = bytearray(content)
        for _ in range(noise.choice([1, 1, 5])):
            changed[noise.randrange(len(changed))] ^= 1 << noise.randrange(8)
        return bytes(changed)
    if kind == 1:
        start = noise.randrange(len(content))
        return content[:start] + content[start + noise.randrange(1, 2 + len(content) // 3):]
    tokens = list(re.finditer(rb'"[^"\n]*"|-?\d+|null|true|[\t,:{}\[\]<>]', content))
    chosen = noise.sample(tokens, min(len(tokens), noise.choice([1, 1, 3])))
    for match in sorted(chosen, key=lambda each: -each.start()):
        other = noise.choice([b"", b"null", b"7", b"-1", b'"x"', b"[]", b"{}", b"true", b"[1]", b'{"a": []}', b"\t",
                              b'"\\ud800"', b"\0", b"9" * 5000, b"[" * 3000, b"1e999", b"&x;"])
        content = content[:match.start()] + other + content[match.end():]
    return content


def places_in(value, path=()):
    """The path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield (*path, key)
        yield from places_in(each, (*path, key))


def reshaped(value, noise: random.Random):
    """The JSON value with one value inside removed or replaced by one of another type."""
    places = list(places_in(value))
    if not places or not noise.randrange(10):
        return noise.choice([None, 7, "x", [], {}, [1], True])
    value = json.loads(json.dumps(value))
    *path, last = noise.choice(places)
    inner = value
    for key in path:
        inner = inner[key]
    if noise.randrange(3):
        inner[last] = noise.choice([None, 7, -1, 0.5, "x", "", [], {}, [1], ["a"], [{}], {"a": 1}, True])
    else:
        del inner[last]
    return value


def reshaped_json(content: str, noise: random.Random) -> str:
    """JSON, or lines of JSON, with one value reshaped; other content as it is."""
    try:
        return json.dumps(reshaped(json.loads(content), noise))
    except ValueError:
        pass
    try:
        values = [json.loads(line) for line in content.splitlines()]
    except ValueError:
        return content
    chosen = noise.randrange(len(values))
    return json_lines(*(reshaped(value, noise) if at == chosen else value for at, value in enumerate(values)))


def reshaped_files(files: dict, noise: random.Random) -> dict:
    return {name: reshaped_files(inner, noise) if isinstance(inner, dict) else
            reshaped_json(inner, noise) if isinstance(inner, str) and inner else inner for name, inner in files.items()}


def damage_of(files: dict, noise: random.Random) -> dict:
    """The files with one of them damaged: its content, or else its packed bytes."""
    name = noise.choice(list(files))
    inner = files[name]
    if isinstance(inner, dict) and noise.randrange(3):
        return files | {name: damage_of(inner, noise)}
    if isinstance(inner, dict) or noise.randrange(3) == 0:
        return files | {name: damaged(packed(name, inner) or b"x", noise)}
    inner = inner.encode() if isinstance(inner, str) else inner
    return files | {name: packed(name, damaged(inner or b"x", noise))}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_damage_is_an_error_that_names_the_file_or_is_counted(case, tmp_path):
    for seed in range(FIRST_SEED, FIRST_SEED + 16):
        folder, noise = tmp_path / str(seed), random.Random(seed)
        for name, content in (damage_of if seed % 2 else reshaped_files)(case.files, noise).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content if isinstance(content, bytes) else packed(name, content))
        try:
            mined_in_memory(case.source, [folder / name for name in case.files], **(case.flags or {}))
        except ValueError as error:
            assert re.search(f"{folder}|inputs", str(error)), f"{seed=}: {error}"


def test_the_side_that_is_cut_short_ends_the_pairs(tmp_path):
    """A truncated file has fewer lines than its translation: the lines before the cut are mined, and it is said."""
    words = [str(random.Random(number).getrandbits(80)) for number in range(20_000)]
    (tmp_path / "x.de-en.de").write_text("".join(f"{word} de\n" for word in words))
    whole = gzip.compress("".join(f"{word} en\n" for word in words).encode())
    (tmp_path / "x.de-en.en.gz").write_bytes(whole[:len(whole) // 2])
    lines, manifest = mined("moses", [tmp_path], tmp_path / "out")
    found = lines["x.de-en.tsv"]
    assert 8000 < len(found) < 12_000 and found == [[f"{word} en", f"{word} de"] for word in words[:len(found)]]
    assert any(f"{tmp_path}/x.de-en.en.gz is cut short" in note for note in manifest["notes"])


def test_a_scratch_folder_that_is_not_there_is_named(tmp_path):
    write_files(tmp_path, {"sentences.csv": "1\teng\tHello.\n"})
    with pytest.raises(ValueError, match="--scratch_dir=nowhere is no folder"):
        mined("tatoeba", [tmp_path / "sentences.csv"], tmp_path / "out", scratch_dir="nowhere")
