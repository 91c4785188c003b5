"""Readers of NTREX-128 and Tatoeba: the same rows from JSON lines and from the plain text as published."""

import gzip
import json

import pytest

from evaluation.tasks.bitext import Bitext, read_bitexts

NTREX = [
    {"id": 0, "deu": "Hallo.", "eng": "Hello.", "spa": "Hola.", "spa_2": "Buenas.", "zho-CN": "你好。"},
    {"id": 1, "zho-CN": "雨\u2028。", "deu": "Regen", "eng": 'It "rains"', "spa": "Llueve.", "spa_2": "Lluvia"},
]
NTREX_FILES = {"src.eng": "eng", "ref.deu": "deu", "ref.spa": "spa", "ref-2.spa": "spa_2", "ref.zho-CN": "zho-CN"}
TATOEBA = [
    {"lang": "deu", "text": "Hallo.", "eng": "Hello."},
    {"lang": "fra", "text": "Salut.", "eng": "Hi."},
    {"lang": "deu", "text": "Regen", "eng": 'It "rains"'},
]


def write_lines(path, lines, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(line + end for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_json(path, rows):
    return write_lines(path, [json.dumps(row, ensure_ascii=False) for row in rows])


def write_ntrex(folder):
    for name, language in NTREX_FILES.items():
        write_lines(folder / f"newstest2019-{name}.txt", [row[language] for row in NTREX], end="\r\n")


def write_tatoeba(folder):
    for language in ("deu", "fra"):
        rows = [row for row in TATOEBA if row["lang"] == language]
        write_lines(folder / f"tatoeba.{language}-eng.{language}", [row["text"] for row in rows])
        write_lines(folder / f"tatoeba.{language}-eng.eng", [row["eng"] for row in rows])


@pytest.mark.parametrize("place", [
    "multilingual/ntrex128.jsonl.gz", "ntrex128.jsonl", "multilingual/NTREX-128", "NTREX-128", ""])
def test_ntrex(tmp_path, place):
    write_json(tmp_path / place, NTREX) if ".jsonl" in place else write_ntrex(tmp_path / place)
    bitexts = read_bitexts(str(tmp_path), "ntrex")
    assert bitexts == {language: Bitext(["Hello.", 'It "rains"'], [row[language] for row in NTREX])
                       for language in ("deu", "spa", "spa_2", "zho-CN")}
    assert list(read_bitexts(str(tmp_path), "ntrex", ("spa_2", "deu"))) == ["spa_2", "deu"]


@pytest.mark.parametrize("place", [
    "multilingual/tatoeba_v1.jsonl.gz", "tatoeba_v1.jsonl", "multilingual/tatoeba/v1", "tatoeba/v1", ""])
def test_tatoeba(tmp_path, place):
    write_json(tmp_path / place, TATOEBA) if ".jsonl" in place else write_tatoeba(tmp_path / place)
    assert read_bitexts(str(tmp_path), "tatoeba") == {
        "deu": Bitext(["Hello.", 'It "rains"'], ["Hallo.", "Regen"]), "fra": Bitext(["Hi."], ["Salut."])}
    with pytest.raises(ValueError, match=r"--languages=fra,xho,epo: .* has no xho, epo; it has deu, fra"):
        read_bitexts(str(tmp_path), "tatoeba", ("fra", "xho", "epo"))


@pytest.mark.parametrize("lines, message", [
    ((), "ntrex128.jsonl has no lines"),
    (('{"id": 0, "deu": "a", "eng": "b"', ), "ntrex128.jsonl:1: not JSON: Expecting"),
    (('{"deu": "a", "eng": "b"}', '["a"]'), "ntrex128.jsonl:2: not a JSON object: "),
    (('{"deu": "a", "eng": "b"}', '{"deu": "a"}'), "ntrex128.jsonl:2: 'eng' is missing"),
    (('{"deu": "a", "eng": " "}',), "ntrex128.jsonl:1: 'eng' is empty"),
    (('{"deu": "", "eng": "b"}',), "ntrex128.jsonl:1: 'deu' is empty"),
    (('{"deu": ["a"], "eng": "b"}',), "ntrex128.jsonl:1: 'deu' is not a string: "),
    (('{"deu": "a", "eng": "b"}', '{"fra": "c", "eng": "b"}'),
     "ntrex128.jsonl:2: either this line or .*ntrex128.jsonl:1 lacks deu, fra"),
])
def test_bad_lines_of_ntrex(tmp_path, lines, message):
    write_lines(tmp_path / "ntrex128.jsonl", lines)
    with pytest.raises(ValueError, match=message):
        read_bitexts(str(tmp_path), "ntrex", ("deu",))


@pytest.mark.parametrize("row, message", [
    ({"lang": "fra", "text": "a"}, "'eng' is missing"), ({"text": "a", "eng": "b"}, "'lang' is missing"),
    ({"lang": "fra", "eng": "b"}, "'text' is missing"), ({"lang": "fra", "text": "\t", "eng": "b"}, "'text' is empty"),
])
def test_bad_lines_of_tatoeba(tmp_path, row, message):
    write_json(tmp_path / "tatoeba_v1.jsonl", [*TATOEBA, row])
    with pytest.raises(ValueError, match=f"tatoeba_v1.jsonl:4: {message}"):
        read_bitexts(str(tmp_path), "tatoeba", ("deu",))


def test_bad_plain_text(tmp_path):
    write_ntrex(tmp_path)
    write_lines(tmp_path / "newstest2019-ref.deu.txt", ["Hallo."])
    with pytest.raises(ValueError, match=r"src.eng.txt:2: there is no such line in .*ref.deu.txt"):
        read_bitexts(str(tmp_path), "ntrex")
    assert list(read_bitexts(str(tmp_path), "ntrex", ("spa",))) == ["spa"]
    write_lines(tmp_path / "newstest2019-ref.deu.txt", ["Hallo.", " "])
    with pytest.raises(ValueError, match=r"ref.deu.txt:2: the line is empty"):
        read_bitexts(str(tmp_path), "ntrex")
    write_tatoeba(tmp_path)
    (tmp_path / "tatoeba.fra-eng.fra").write_text("")
    with pytest.raises(ValueError, match=r"no such line in .*tatoeba.fra-eng.fra"):
        read_bitexts(str(tmp_path), "tatoeba")
    (tmp_path / "tatoeba.fra-eng.fra").unlink()
    with pytest.raises(OSError, match=r"tatoeba.fra-eng.fra"):
        read_bitexts(str(tmp_path), "tatoeba")


def test_a_folder_without_the_files(tmp_path):
    with pytest.raises(ValueError, match=r"--suite=ntrex: --data_dir=.* has no ntrex128.jsonl, .* or NTREX-128"):
        read_bitexts(str(tmp_path), "ntrex")
    with pytest.raises(ValueError, match=r"--data_dir=.*nowhere is not a folder"):
        read_bitexts(str(tmp_path / "nowhere"), "tatoeba")


@pytest.mark.parametrize("language, code", [("de", "deu"), ("DEU", "deu"), ("es", "spa"), ("zh-CN", "zho-CN")])
def test_a_language_by_another_code_gets_the_code_of_the_file(tmp_path, language, code):
    write_json(tmp_path / "ntrex128.jsonl", NTREX)
    with pytest.raises(ValueError, match=f"has no {language}; did you mean {code}"):
        read_bitexts(str(tmp_path), "ntrex", (language,))


def test_blank_last_lines_are_skipped(tmp_path):
    write_ntrex(tmp_path)
    with (tmp_path / "newstest2019-ref.deu.txt").open("a") as file:
        file.write("\n \n")
    assert read_bitexts(str(tmp_path), "ntrex")["deu"].translations == ["Hallo.", "Regen"]
