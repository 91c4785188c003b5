"""The same pairs in every published format, written by hand, are the same sets with the same scores."""

import gzip
import json
import logging
import os
import re

import pytest

from evaluation.files import sts_places
from evaluation.files.sts_places import YEARS, read_set
from evaluation.tasks.sts import score_set

GOLD = (5.0, 2.75, 3.4, 0.0)  # of the four pairs of each part


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO, logger="absl")
    return caplog


def refused(message, folder, name, split="test"):
    with pytest.raises(ValueError) as error:
        read_set(str(folder), name, split)
    assert re.search(message, str(error.value))


def pairs_of(part):
    """Angles that the angle encoder understands, other ones in each part."""
    part = part.removeprefix("surprise.")
    first = 3 * len(part)
    return [(f'"{part} {first}', f"it's, {first + 10 * number}", score) for number, score in enumerate(GOLD, 1)]


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(line + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_table(path, parts, header="sentence1\tsentence2\tscore\tsplit\tsource", split="test"):
    write(path, [header, *(f"{first}\t{second}\t{score}\t{split}\t{part}"
                           for part in parts for first, second, score in pairs_of(part))])


def write_year(folder, parts, *, file_name="STS.{}.{}.txt", more=""):
    for part in parts:
        write(folder / file_name.format("input", part), [f"{a}\t{b}{more}" for a, b, _ in pairs_of(part)])
        write(folder / file_name.format("gs", part), [f"{score}" for *_, score in pairs_of(part)])


def surprises(year):
    return [f"surprise.{part}" if year == "sts12" and part in ("OnWN", "SMTnews") else part for part in YEARS[year]]


@pytest.mark.parametrize("year", YEARS)
def test_the_layouts_of_a_year_give_the_same_scores(tmp_path, angle_encoder, year):
    write_table(tmp_path / "ours" / "eval" / f"{year}.tsv", YEARS[year])
    write_table(tmp_path / "gzipped" / f"{year}.tsv.gz", surprises(year)[::-1])
    parts = surprises(year)
    write_year(tmp_path / "downstream" / "STS" / f"STS{year[-2:]}-en-test", parts)
    write_year(tmp_path / "plain" / "STS" / f"STS{year[-2:]}-en-test", parts)
    name, more = ("STS2016.{}.{}.txt", "\tsource: x\tsource: y") if year == "sts16" else ("STS.{}.{}.txt", "")
    write_year(tmp_path / "raw" / "unpacked" / "test-gold", parts, file_name=name, more=more)
    embedder = angle_encoder.load("model-1").encode
    sets = [read_set(str(tmp_path / folder), year, "test") for folder in ("ours", "gzipped", "", "plain", "raw")]
    for each in sets:
        assert each.parts == {part: pairs_of(part) for part in YEARS[year]} and not each.by_language
        assert score_set(embedder, each) == score_set(embedder, sets[0])


def stsb_lines(more):
    return [f"main-news\tMSRvid\t2012test\t{number:04d}\t{score:.3f}\t{first}\t{second}{more if number % 2 else ''}"
            for number, (first, second, score) in enumerate(pairs_of("stsb"))]


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


def stsb_folder(root, layout):
    if layout == "ours":
        write_table(root / "eval" / "stsb.tsv", ["stsb"], split="dev")
    if layout == "without splits":
        write(root / "stsb.tsv", ["score\tsentence2\tsentence1", *(f"{c}\t{b}\t{a}" for a, b, c in pairs_of("stsb"))])
    if layout == "SentEval":
        write(root / "downstream" / "STS" / "STSBenchmark" / "sts-dev.csv", stsb_lines(""))
    if layout == "SemEval":
        write(root / "stsbenchmark" / "sts-dev.csv", stsb_lines("\thttp://x\thttp://y"))
        write(root / "stsbenchmark" / "sts-train.csv", ["broken"])  # another split is not read
    if layout == "GLUE":
        write(root / "glue_data" / "STS-B" / "dev.tsv", [
            "index\tgenre\tsource1\tsource2\tsentence1\tsentence2\tscore",
            *(f"{number}\tmain-news\tnone\tnone\t{a}\t{b}\t{score:.3f}"
              for number, (a, b, score) in enumerate(pairs_of("stsb")))])
    if layout == "CSV":
        write(root / "data" / "stsb-en-dev.csv", [
            f"{quoted(a)},{quoted(b)},{score}" for a, b, score in pairs_of("stsb")])
    return root


@pytest.mark.parametrize("layout", ["ours", "without splits", "SentEval", "SemEval", "GLUE", "CSV"])
def test_the_layouts_of_stsb(tmp_path, layout):
    folder, split = stsb_folder(tmp_path, layout), "test" if layout == "without splits" else "dev"
    stsb = read_set(str(folder), "stsb", split)
    assert stsb.parts == {"stsb": pairs_of("stsb")} and stsb.split == split
    message = "header lacks split" if split == "test" else "the split 'test'; it has (train, )?dev"
    refused(message, folder, "stsb", "dev" if split == "test" else "test")


def test_the_layouts_of_sick(tmp_path):
    pairs = [(first, second, max(score, 1.0)) for first, second, score in pairs_of("sick")]
    write(tmp_path / "ours" / "sick.tsv", ["sentence1\tsentence2\tscore\tsplit", *(
        f"{a}\t{b}\t{score}\tdev" for a, b, score in pairs)])
    names = "pair_ID\tsentence_A\tsentence_B"
    write(tmp_path / "senteval" / "SICK" / "SICK_trial.txt", [f"{names}\trelatedness_score\tentailment_judgment", *(
        f"7\t{a}\t{b}\t{score}\tNEUTRAL" for a, b, score in pairs)])
    write(tmp_path / "senteval" / "SICK" / "SICK_train.txt", ["broken"])
    write(tmp_path / "whole" / "SICK.txt", [f"{names}\tentailment_label\trelatedness_score\tSemEval_set", *(
        f"7\t{a}\t{b}\tNEUTRAL\t{score}\t{split}" for split in ("TRAIN", "TRIAL") for a, b, score in pairs)])
    for folder in ("ours", "senteval", "whole"):
        assert read_set(str(tmp_path / folder), "sickr", "dev").parts == {"sickr": pairs}
    assert read_set(str(tmp_path / "whole"), "sickr", "train").parts == {"sickr": pairs}
    refused("SICK.txt has no row of the split 'TEST'; it has TRAIN, TRIAL", tmp_path / "whole", "sickr")


def test_the_layouts_of_a_cross_lingual_set(tmp_path, angle_encoder):
    languages = ["en-de", "es-en"]
    lines = {language: [json.dumps({"sentence1": a, "sentence2": b, "score": score})
                        for a, b, score in pairs_of(language)] for language in languages}
    for number, language in enumerate(languages):
        write_year(tmp_path / "tracks" / "eval", [f"track{number}.{language}"])
        for role, column in (("input", slice(0, 2)), ("gs", slice(2, 3))):
            folder = tmp_path / "tracks" / {"input": "STS2017.eval.v1.1", "gs": "STS2017.gs"}[role]
            (tmp_path / "tracks" / "eval" / f"STS.{role}.track{number}.{language}.txt").unlink()
            write(folder / f"STS.{role}.track{number}.{language}.txt", [
                "\t".join(map(str, pair[column])) for pair in pairs_of(language)])
        write(tmp_path / "extended" / "STS2017-extended" / f"STS.{language}.txt", [
            f"{a}\t{b}\t{score}" for a, b, score in pairs_of(language)])
        write(tmp_path / "hub" / "sts17-crosslingual-sts" / language / "test.jsonl.gz", lines[language])
    write(tmp_path / "lines" / "multilingual" / "sts17.jsonl", [
        line[:-1] + f', "lang": "{language}"}}' for language in languages for line in lines[language]])
    write(tmp_path / "lines" / "heldout.jsonl", ['["a", "b"]'])  # no STS file
    for folder in ("tracks", "extended", "hub", "lines"):
        sts17 = read_set(str(tmp_path / folder), "sts17", "test")
        assert sts17.by_language and sts17.parts == {language: pairs_of(language) for language in languages}
        assert score_set(angle_encoder.load("model-1").encode, sts17).results[0].metric == "cosine_spearman_mean"
        refused("split 'train'; it has test", tmp_path / folder, "sts17", "train")


def test_two_tracks_of_one_pair_of_languages_are_two_parts(tmp_path):
    write_year(tmp_path, ["track4a.es-en", "track4b.es-en", "track5.en-en"])
    assert list(read_set(str(tmp_path), "sts17", "test").parts) == ["track4a.es-en", "track4b.es-en", "en-en"]
    (tmp_path / "STS.gs.track4b.es-en.txt").unlink()
    refused("STS.gs.track4b.es-en.txt, of sts17, is needed once; found in no folder", tmp_path, "sts17")


def test_json_lines_have_splits_and_ranges(tmp_path):
    path = tmp_path / "multilingual" / "sts22.jsonl.gz"
    line = {"sentence1": "a 1", "sentence2": "b 2", "score": 4, "lang": "de", "split": "test"}
    write(path, map(json.dumps, (line, line | {"split": "train"}, line | {"lang": "en", "id": 3})))
    assert read_set(str(tmp_path), "sts22", "test").parts == {"de": [("a 1", "b 2", 4.0)], "en": [("a 1", "b 2", 4.0)]}
    for bad, message in [
        ({"score": 0.5}, "score 0.5 is outside 1 to 4"), ({"score": None}, "score is not a finite number: None"),
        ({"lang": ""}, "no language: lang is ''"), ({"sentence2": 3}, "sentence2 is not a string: 3"),
        ({"sentence1": " "}, "sentence1 is empty"), ({"sentence1": "\ud800"}, "sentence1 has half a surrogate pair"),
        ({"score": True}, "score is not a finite number: True"),
        ({"score": 10 ** 400}, "score is not a finite number: 1000"),
    ]:
        write(path, map(json.dumps, (line, line | bad)))
        refused(f"sts22.jsonl.gz:2: .*{message}", tmp_path, "sts22")
    write(path, [json.dumps(line), '{"sentence1": "a 1"}'])
    refused("sts22.jsonl.gz:2: the object lacks sentence2, score; it has", tmp_path, "sts22")


def test_pairs_that_were_not_judged_are_left_out_and_counted(tmp_path, log):
    write_year(tmp_path, YEARS["sts15"])
    write(tmp_path / "STS.input.belief.txt", ["a 1\tb 2", "odd", "c 3\td 4", "odd"])
    write(tmp_path / "STS.gs.belief.txt", ["", " ", "2.5", ""])
    assert read_set(str(tmp_path), "sts15", "test").parts["belief"] == [("c 3", "d 4", 2.5)]
    assert "STS.input.belief.txt: left out 3 of 4 pairs: not judged" in log.text
    assert "sts15 test: 17 pairs" in log.text and "but 3000 are published" in log.text
    write(tmp_path / "STS.gs.belief.txt", [""] * 4)
    refused("STS.gs.belief.txt has no scores for the 4 pairs", tmp_path, "sts15")


def test_smt_of_2013_is_left_out(tmp_path, log):
    write_year(tmp_path / "raw", YEARS["sts13"])
    write(tmp_path / "raw" / "STS.gs.SMT.txt", ["1"])
    assert list(read_set(str(tmp_path / "raw"), "sts13", "test").parts) == ["FNWN", "headlines", "OnWN"]
    assert "left out STS.gs.SMT.txt" in log.text
    write_table(tmp_path / "sts13.tsv", ("SMT", *YEARS["sts13"]))
    assert list(read_set(str(tmp_path), "sts13", "test").parts) == ["FNWN", "headlines", "OnWN"]
    assert "sts13.tsv: left out 4 pairs of SMT" in log.text


def test_a_folder_belongs_to_the_year_whose_parts_it_has(tmp_path):
    """2012's training folder and its inputs without gold lose to the test folder, an incomplete 2014 to none."""
    write_year(tmp_path / "2012" / "train", YEARS["sts12"][:3])
    write_year(tmp_path / "2012" / "test-gold", surprises("sts12"))
    write_year(tmp_path / "2012" / "test", surprises("sts12"))
    for path in (tmp_path / "2012" / "test").glob("STS.gs.*"):
        path.unlink()
    write_year(tmp_path / "a" / "b" / "c", YEARS["sts13"])
    write_year(tmp_path / "2014", YEARS["sts14"][1:])
    found = sts_places.find_places(str(tmp_path))
    paths = {name: [str(place.path.relative_to(tmp_path)) for place in places[3]] for name, places in found.items()}
    assert paths == {"sts12": ["2012/test-gold"], "sts13": ["a/b/c"], "sts14": ["2014"]}
    refused("2014 lacks STS.input.deft-forum.txt, STS.gs.deft-forum.txt, of the parts of", tmp_path, "sts14")
    write_year(tmp_path / "copy", YEARS["sts13"])
    refused(f"--suite=sts13: found in {tmp_path}/copy and in {tmp_path}/a/b/c", tmp_path, "sts13")


def test_of_two_places_the_first_of_the_table_is_read(tmp_path, log):
    """SentEval's script, run twice, leaves the raw folder inside its own."""
    write_year(tmp_path / "STS" / "STS13-en-test" / "test-gs", YEARS["sts13"])
    write_year(tmp_path / "STS" / "STS13-en-test", YEARS["sts13"])
    read_set(str(tmp_path), "sts13", "test")
    assert "STS13-en-test; not read: " in log.text and "STS13-en-test/test-gs" in log.text
    write_table(tmp_path / "sts13.tsv", YEARS["sts13"])
    log.clear()
    read_set(str(tmp_path), "sts13", "test")
    assert "sts13.tsv; not read: " in log.text
    write_table(tmp_path / "sts13.tsv.gz", YEARS["sts13"])
    refused("found in .*sts13.tsv and in .*sts13.tsv.gz; choose by --data_dir", tmp_path, "sts13")


def test_a_table_whose_source_names_no_part_is_scored_as_a_whole(tmp_path, log):
    write_table(tmp_path / "sts16.tsv", ["id-1", "id-2"])
    assert list(read_set(str(tmp_path), "sts16", "test").parts) == ["sts16"]
    assert "the column source names no part of sts16" in log.text


def test_a_linked_folder_counts_once(tmp_path):
    write_year(tmp_path / "raw", YEARS["sts13"])
    (tmp_path / "same").symlink_to(tmp_path / "raw")
    (tmp_path / "raw" / "loop").symlink_to(tmp_path)
    assert sum(map(len, read_set(str(tmp_path), "sts13", "test").parts.values())) == 12


def test_a_folder_that_may_not_be_looked_into_is_logged(tmp_path, log, monkeypatch):
    write_year(tmp_path / "raw", YEARS["sts13"])
    (tmp_path / "lost+found").mkdir()
    scandir = os.scandir

    def only_others(folder):
        if folder.name == "lost+found":
            raise PermissionError(f"Permission denied: {folder}")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", only_others)
    assert read_set(str(tmp_path), "sts13", "test").parts and "left out: Permission denied" in log.text


@pytest.mark.parametrize("file, lines, message", [
    ("STS.input.FNWN.txt", ["a 1\tb 2"], "gs.FNWN.txt:2: there is no such line in .*input.FNWN.txt"),
    ("STS.gs.FNWN.txt", ["1"] * 5, "gs.FNWN.txt:5: there is no such line in .*input.FNWN.txt"),
    ("STS.gs.FNWN.txt", ["1", "1", "5.1", "1"], "gs.FNWN.txt:3: score 5.1 is outside 0 to 5"),
    ("STS.gs.FNWN.txt", ["1", "-1", "5", "1"], "gs.FNWN.txt:2: score -1 is outside 0 to 5"),
    ("STS.gs.FNWN.txt", ["1", "1", "1", "x"], "gs.FNWN.txt:4: score is not a finite number: 'x'"),
    ("STS.input.FNWN.txt", ["a\tb", "a\tb\tc", "a\tb", "a\tb"], "input.FNWN.txt:2: 3 columns; expected 2"),
    ("STS.input.FNWN.txt", ["a\tb", "a\tb", "a", "a\tb"], "input.FNWN.txt:3: 1 columns; expected 2"),
    ("STS.input.FNWN.txt", ["a\tb", "a\t ", "a\tb", "a\tb"], "input.FNWN.txt:2: sentence2 is empty"),
    ("STS.gs.FNWN.txt", None, "sts13 lacks STS.gs.FNWN.txt, of the parts of sts13"),
    ("STS.input.OnWN.txt", None, "sts13 lacks STS.input.OnWN.txt, of the parts of sts13"),
])
def test_bad_files_of_a_year(tmp_path, file, lines, message):
    write_year(tmp_path / "sts13", YEARS["sts13"])
    (tmp_path / "sts13" / file).unlink() if lines is None else write(tmp_path / "sts13" / file, lines)
    refused(message, tmp_path, "sts13")


HEADER = "sentence1\tsentence2\tscore\tsource"


@pytest.mark.parametrize("suite, name, lines, message", [
    ("sts12", "eval/sts12.tsv", [HEADER, "a\tb\t6\tMSRpar"], "sts12.tsv:2: score 6 is outside 0 to 5"),
    ("sts12", "sts12.tsv", [HEADER, "a\tb\t5\tMSRpar"], "has no pairs of MSRvid, SMTeuroparl, OnWN, SMTnews"),
    ("sts12", "sts12.tsv", [HEADER, "a\tb\t5\tMSRpar", "a\tb\t5\tx"], "sts12.tsv:3: source 'x' is no part of sts12"),
    ("sickr", "sick.tsv", ["sentence1\tsentence2\tscore", "a\tb\t0.5"], "sick.tsv:2: score 0.5 is outside 1 to 5"),
    ("sickr", "SICK_test_annotated.txt", ["pair_ID\tsentence_A\tsentence_B"], "the header lacks relatedness_score"),
    ("stsb", "STS-B/test.tsv", ["index\tsentence1\tsentence2", "0\ta\tb"], "test.tsv:1: the header lacks score"),
    ("stsb", "sts-test.csv", ["a\tb\tc\td\t1\te\tf", "a\tb\tc\td\t1\te"], "csv:2: 6 columns; expected 7 or 8 or 9"),
    ("stsb", "stsb-en-test.csv", ['"a', 'b",c,1', "a,b"], "stsb-en-test.csv:3: 2 columns; expected 3"),
    ("stsb", "stsb-en-test.csv", ["a,b,1", '"a,b,1'], "stsb-en-test.csv:2: not comma-separated: unexpected end"),
    ("stsb", "stsb-en-test.csv", [], "stsb-en-test.csv has no lines"),
    ("sts17", "STS2017-extended/STS.en-de.txt", ["a\tb"], "STS.en-de.txt:1: 2 columns; expected 3"),
])
def test_bad_files(tmp_path, suite, name, lines, message):
    write(tmp_path / name, lines)
    refused(message, tmp_path, suite)


def test_a_task_that_is_not_there(tmp_path):
    write_table(tmp_path / "eval" / "my_pairs.tsv", ["x"])
    (tmp_path / "eval" / "damaged.tsv.gz").write_bytes(b"no gzip")
    assert read_set(str(tmp_path), "my_pairs", "test").parts == {"my_pairs": pairs_of("x")}
    refused("--suite=sts14 is not in --data_dir=.*, which has the STS files of damaged, my_pairs; looked for eval/"
            "sts14.tsv, .*STS/STS14-en-test, folders with STS.input.PART.txt", tmp_path, "sts14")
    refused("--suite=x is unknown; --data_dir=.* has the STS files of damaged, my_pairs; looked for eval/x",
            tmp_path, "x")
    refused("--suite=my_pair is unknown: did you mean my_pairs", tmp_path, "my_pair")
    (tmp_path / "empty").mkdir()
    refused("--suite=x is unknown; --data_dir=.*empty has no file of STS pairs; looked for", tmp_path / "empty", "x")
    refused("damaged.tsv.gz: damaged gzip file", tmp_path, "damaged")


def test_header_names_in_any_case_a_byte_order_mark_and_blank_lines(tmp_path):
    rows = [f"{a}\t{b}\t{c}\ttest" for a, b, c in pairs_of("x")]
    lines = ["\ufeff", "Sentence1\tSENTENCE2\tScore\tSplit\r", "", *rows, "\t\t\t", ""]
    write(tmp_path / "mine.tsv", lines)
    assert read_set(str(tmp_path), "mine", "test").parts == {"mine": pairs_of("x")}
    write(tmp_path / "twice.tsv", ["sentence1\tsentence2\tscore\tScore", "a\tb\t1\t2"])
    refused("twice.tsv:1: the header names score 2 times", tmp_path, "twice")
    write_year(tmp_path / "raw", YEARS["sts13"])
    with (tmp_path / "raw" / "STS.input.FNWN.txt").open("a") as file:
        file.write("\n\n")
    assert read_set(str(tmp_path / "raw"), "sts13", "test").parts["FNWN"] == pairs_of("FNWN")
