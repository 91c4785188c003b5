"""Duplicates of each kind and which one stays, texts of evaluation sets, the output's names, and the report."""

import collections
import json
import random

import pytest

from data.mine.filter.filter import FilterConfig, filter_files, output_names
from data.mine.filter.words import words_of
from data.prepare import PrepareConfig, prepare
from tests.data.mine.filter.toys import dataset, read, run, write

A = ["what is a cat", "an animal"]


def test_duplicates_within_and_across(tmp_path):
    kept, report = run(tmp_path, {
        "b.jsonl": [A, ["x y", "z"], ["What is a CAT?", "An  animal."], ["an animal", "what is a cat"]],
        "a/c.jsonl.gz": [["x y", "z"], ["new", "one"], ["x y", "z"]]})
    assert kept == {"a/c.jsonl.gz": [["x y", "z"], ["new", "one"]], "b.jsonl.gz": [A]}
    assert dataset(report, "b.jsonl")["duplicate_of"] == {"b.jsonl": 2, "a/c.jsonl.gz": 1}
    assert dataset(report, "a/c.jsonl.gz")["duplicate_of"] == {"a/c.jsonl.gz": 1}
    found = [(each["line"], each["found_in"], each["winner_line"]) for each in dataset(report, "b.jsonl")["examples"]]
    assert found == [(2, "a/c.jsonl.gz", 1), (3, "b.jsonl", 1), (4, "b.jsonl", 1)]
    assert json.loads((tmp_path / "out/data_config.json").read_text()) == [
        {"name": "a/c.jsonl.gz", "lines": 2, "weight": 1}, {"name": "b.jsonl.gz", "lines": 1, "weight": 1}]


@pytest.mark.parametrize(("flags", "kept"), [
    ({}, [A]),
    ({"match": "exact"}, [A, ["What is a CAT?", "an animal"]]),
    ({"keep_reversed": True}, [A, ["an animal", "what is a cat"]]),
    ({"duplicates": "none"}, [A, ["What is a CAT?", "an animal"], ["an animal", "what is a cat"]]),
])
def test_rules_of_duplicates(tmp_path, flags, kept):
    lines = [A, ["What is a CAT?", "an animal"], ["an animal", "what is a cat"]]
    assert run(tmp_path, {"a.jsonl": lines}, **flags)[0] == {"a.jsonl.gz": kept}


def test_the_same_texts_in_other_forms(tmp_path):
    """A triplet is not its pair, a set of two is, and so is a query with one positive."""
    kept, _ = run(tmp_path, {
        "a.jsonl": [["a b", "c", "d"], ["c", "a b", "d"], ["a b", "d", "c"]],
        "b.tsv": ["a b\tc", "c\ta b"],
        "c.jsonl": [{"set": ["c", "a b"]}, {"set": ["a b", "c", "d"]}, {"set": ["d", "c", "a b", "C"]}],
        "d.jsonl": [{"query": "c", "pos": ["a b"]}, {"query": "c", "pos": ["a b", "e"]},
                    {"query": "c", "pos": ["e", "a b"]}, {"query": "e", "pos": ["c", "a b"]}]})
    assert kept == {
        "a.jsonl.gz": [["a b", "c", "d"], ["a b", "d", "c"]], "b.jsonl.gz": [["a b", "c"]],
        "c.jsonl.gz": [{"set": ["a b", "c", "d"]}],
        "d.jsonl.gz": [{"query": "c", "pos": ["a b", "e"]}, {"query": "e", "pos": ["c", "a b"]}]}


def test_order(tmp_path):
    files = {name: [A, [name, "own"]] for name in ("a.jsonl", "b.jsonl", "c.jsonl")}
    for flags, winner in (({}, "a"), ({"order": ("c.jsonl",)}, "c"), ({"order": ("b.jsonl", "a.jsonl")}, "b")):
        kept, _ = run(tmp_path, files, output=f"out-{winner}", **flags)
        assert [name for name, lines in kept.items() if A in lines] == [f"{winner}.jsonl.gz"]
    config = tmp_path / "config.json"
    config.write_text(json.dumps([{"name": f"{name}.jsonl", "weight": 3, "lines": 2, "query_prompt": name}
                                  for name in "bca"]))
    kept, _ = run(tmp_path, files, output="by_config", data_config=str(config))
    assert [name for name, lines in kept.items() if A in lines] == ["b.jsonl.gz"]
    assert json.loads((tmp_path / "by_config/data_config.json").read_text()) == [
        {"name": f"{name}.jsonl.gz", "weight": 3, "lines": 2 if name == "b" else 1, "query_prompt": name}
        for name in "bca"]


def test_texts_are_kept_once(tmp_path):
    kept, report = run(tmp_path, {
        "a.jsonl": [["q one", "p"], ["q one", "other"], ["same", "Same!"], ["third", "other"]],
        "b.jsonl": [{"set": ["p", "s", "t", "T"]}, {"set": ["s", "u"]}, {"set": ["v", "w", "v"]}],
        "c.jsonl": [{"query": "new", "pos": ["u", "x"], "pos_scores": [0.1, 0.2]}, {"query": "v", "pos": ["y"]}]},
        duplicates="texts")
    assert kept == {"a.jsonl.gz": [["q one", "p"], ["same", "Same!"]],  # "other" came first in a pair that went
                    "b.jsonl.gz": [{"set": ["s", "t", "T"]}, {"set": ["v", "w"]}],
                    "c.jsonl.gz": [{"query": "new", "pos": ["x"], "pos_scores": [0.2]}]}
    assert dataset(report, "b.jsonl")["shortened"] == {"evaluation": 0, "duplicate": 1}


def test_evaluation_texts_that_match(tmp_path):
    kept, report = run(tmp_path, {
        "pairs.jsonl": [["A man, dancing", "x"], ["y", "a MAN dancing."], ["a man", "dancing"], ["y", "x"]],
        "sets.jsonl": [{"set": ["one", "a man dancing", "two"]}, {"set": ["A man dancing", "three"]}],
        "lists.jsonl": [{"query": "q", "pos": ["a man dancing", "p"], "neg": ["n"], "pos_scores": [1.0, 0.5]},
                        {"query": "q", "pos": ["p"], "neg": ["A man dancing"]},
                        {"query": "A man dancing", "pos": ["p"], "neg": ["n"]}]},
        {"sts.tsv": ["sentence1\tsentence2\tscore\tsplit", "A man dancing.\tNo\t3\ttest", "y\tx\t3\ttrain"]})
    assert kept == {
        "pairs.jsonl.gz": [["a man", "dancing"], ["y", "x"]], "sets.jsonl.gz": [{"set": ["one", "two"]}],
        "lists.jsonl.gz": [{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [0.5]}]}
    assert report["evaluation_sets"] == {"sts.tsv:test": 2}
    pairs = dataset(report, "pairs.jsonl")
    assert pairs["evaluation"] == {"sts.tsv:test": {"examples": 2, "matching_texts": 2, "overlapping_texts": 0}}
    assert pairs["examples"][0] == {
        "reason": "evaluation", "found_in": "sts.tsv:test", "line": 1, "text": "A man, dancing", "evaluation_line": 2,
        "evaluation_text": "A man dancing.", "common_ngrams": 0, "of": 0, "share": 1.0}
    assert dataset(report, "sets.jsonl")["shortened"] == {"evaluation": 1, "duplicate": 0}


@pytest.mark.parametrize(("share", "removed"), [(0.8, True), (0.8001, False), (1.0, False), (0.0, False)])
def test_share_of_ngrams_at_its_bound(tmp_path, share, removed):
    """5 bigrams of the shorter text, 4 of them in the longer one, which has 9; a repeated bigram counts once."""
    long, short = "a b c d e f g h i j", "b c d e f f"
    for number, (training, evaluation) in enumerate(((long, short), (short, long), (short + " e f", long))):
        kept, report = run(tmp_path / str(number), {"a.jsonl": [[training, "x"], ["other", "pair"]]},
                           {"e.txt": [evaluation]}, ngram_words=2, ngram_share=share)
        texts = removed if number < 2 else removed and share <= 4 / 6
        assert (kept["a.jsonl.gz"] == [["other", "pair"]]) == texts
        if texts:
            found = dataset(report, "a.jsonl")["examples"][0]
            assert (found["common_ngrams"], found["of"], found["share"]) == (4, 5, 0.8)


def test_ngrams_of_different_evaluation_texts_do_not_add_up(tmp_path):
    kept, _ = run(tmp_path, {"a.jsonl": [["a b c d e f", "x"]]}, {"e.txt": ["a b c x y z", "d e f u v w"]},
                  ngram_words=2, ngram_share=0.5)
    assert kept == {"a.jsonl.gz": [["a b c d e f", "x"]]}
    kept, _ = run(tmp_path, {"a.jsonl": [["a b c d e f", "x"], ["g", "h"]]}, {"e.txt": ["a b c x y z"]},
                  ngram_words=2, ngram_share=0.4, output="out2")
    assert kept == {"a.jsonl.gz": [["g", "h"]]}


def test_what_an_evaluation_set_removed_makes_no_duplicate(tmp_path):
    """The first pair goes for its second text; the pair that shares its first text stays."""
    kept, _ = run(tmp_path, {"a.jsonl": [["q", "eval text"], ["q", "p"]]}, {"e.txt": ["eval text"]}, duplicates="texts")
    assert kept == {"a.jsonl.gz": [["q", "p"]]}


def test_duplicates_of_what_an_evaluation_set_left(tmp_path):
    """Sets that lost a text are compared by the texts that they have left, and lose repeated ones too."""
    lines = [{"set": ["eval text", "a", "b"]}, {"set": ["b", "a"]}, {"set": ["b", "c", "eval text", "d"]}]
    kept, report = run(tmp_path, {"a.jsonl": lines}, {"e.txt": ["eval text"]})
    assert kept == {"a.jsonl.gz": [{"set": ["a", "b"]}, {"set": ["b", "c", "d"]}]}
    assert dataset(report, "a.jsonl")["removed"] == {"evaluation": 0, "duplicate": 1}
    kept, report = run(tmp_path, {}, {"e.txt": ["eval text"]}, duplicates="texts", output="texts")
    assert kept == {"a.jsonl.gz": [{"set": ["a", "b"]}, {"set": ["c", "d"]}]}
    assert dataset(report, "a.jsonl")["shortened"] == {"evaluation": 2, "duplicate": 1}


def test_other_formats_and_names(tmp_path):
    kept, _ = run(tmp_path, {
        "t.tsv.gz": ["a b\tc", "d\te"], "x.txt": ["one", "two", "One"], "x.jsonl": [["f", "g"]],
        "p/q.csv": ["question,answer,id", '"a ""b""",c,1', "h,i,2"]},
        data_config=str(write(tmp_path, {"config.json": json.dumps([
            {"name": "t.tsv.gz", "weight": 1}, {"name": "x.txt", "weight": 2}, {"name": "x.jsonl", "weight": 3},
            {"name": "p/q.csv", "weight": 4, "columns": "query=question,positive=answer"}]).encode()}) / "config.json"))
    assert kept == {"t.jsonl.gz": [["a b", "c"], ["d", "e"]], "x.txt.jsonl.gz": [["one", "one"], ["two", "two"]],
                    "x.jsonl.jsonl.gz": [["f", "g"]], "p/q.jsonl.gz": [["h", "i"]]}
    config = json.loads((tmp_path / "out/data_config.json").read_text())
    assert [(each["name"], each["lines"], each["weight"], "columns" in each) for each in config] == [
        ("t.jsonl.gz", 2, 1, False), ("x.txt.jsonl.gz", 2, 2, False), ("x.jsonl.jsonl.gz", 1, 3, False),
        ("p/q.jsonl.gz", 1, 4, False)]
    assert output_names(["a.tsv", "b/a.tsv", "a.PARQUET"]) == {
        "a.tsv": "a.tsv.jsonl.gz", "b/a.tsv": "b/a.jsonl.gz", "a.PARQUET": "a.PARQUET.jsonl.gz"}


def test_the_output_is_read_by_prepare(tmp_path, tiny_model):
    """Also a pair whose second texts are few, which as a list would look like a column of labels."""
    files = {"a.csv": ["q,a", *(f"question {number},{'yes' if number % 2 else 'no'}" for number in range(150))]}
    run(tmp_path, files, columns=("query=q", "positive=a"))
    prepare(PrepareConfig(source_dir=str(tmp_path / "out"), data_dir=str(tmp_path / "data"), tokenizer=str(tiny_model),
                          data_config=str(tmp_path / "out/data_config.json"), workers=1))
    manifest = json.loads((tmp_path / "data/a.jsonl.gz/manifest.json").read_text())
    assert (manifest["kind"], manifest["examples"], manifest["skipped"]["count"]) == ("pair", 150, 0)


def oracle(files, evaluation, n, share, mode):
    """What filter keeps of pairs, text by text in memory."""
    texts = [words_of(text) for text in evaluation]
    grams = [{tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in texts]

    def is_known(text):
        words = words_of(text)
        own = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
        return words in texts or (share > 0 and any(
            len(own & other) / min(len(own), len(other)) >= share for other in grams if own and other))

    seen, kept = set(), collections.defaultdict(list)
    for name, lines in sorted(files.items()):
        for pair in lines:
            if any(map(is_known, pair)):
                continue
            forms = [" ".join(words_of(text)) for text in pair]
            keys = {tuple(sorted(forms))} if mode == "examples" else set(forms)
            if not keys & seen:
                kept[name + ".gz"].append(pair)
            seen |= keys
    return dict(kept)


@pytest.mark.parametrize("seed", range(6))
def test_fuzz_against_memory(tmp_path, seed):
    rng = random.Random(seed)
    n, share, mode = rng.choice([1, 2, 3]), rng.choice([0, 0.3, 0.5, 2 / 3, 1.0]), rng.choice(["examples", "texts"])

    def text():
        return rng.choice([" ", "  ", ", "]).join(rng.choice(["a", "B", "b", "c", "É", "é", "猫", "42"])
                                                  for _ in range(rng.choice([1, 2, 4, 6])))

    files = {f"{name}.jsonl": [[text(), text()] for _ in range(150)] for name in "abc"}
    evaluation = [text() for _ in range(4)]
    kept, report = run(tmp_path, files, {"e.jsonl": [{"text": each} for each in evaluation]}, duplicates=mode,
                       ngram_words=n, ngram_share=share)
    assert kept == oracle(files, evaluation, n, share, mode)
    for each in report["datasets"]:
        assert each["lines"] == each["kept"] + sum(each["removed"].values()) + sum(each["bad_lines"].values())


def test_memory_and_workers_do_not_change_the_output(tmp_path, monkeypatch, run_main):
    rng = random.Random(5)
    files = {f"{name}.jsonl": [[f"t {rng.randrange(2000)}", f"t {rng.randrange(30)}"] for _ in range(1000)]
             for name in "abc"}
    evaluation = {"e.txt": [f"t {number}" for number in range(0, 2000, 50)]}
    run(tmp_path, files, evaluation, ngram_words=2)
    monkeypatch.setattr("data.mine.filter.sorting.ROW_BYTES", 1 << 12)  # 1 MiB: 256 rows
    run(tmp_path, files, evaluation, ngram_words=2, output="tiny")
    run_main("filter", f"--source_dir={tmp_path}/train", f"--evaluation_dir={tmp_path}/eval", "--ngram_words=2",
             f"--output={tmp_path}/two", "--workers=2")
    first, *others = ({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
                      for folder in ("out", "tiny", "two"))
    assert others == [first, first]
    assert sum(len(lines) for lines in read(tmp_path / "out").values()) == len(
        {tuple(sorted(pair)) for lines in files.values() for pair in lines
         if not any(text in evaluation["e.txt"] for text in pair)})


def test_a_finished_output_stays_and_a_changed_file_is_filtered_again(tmp_path, capsys):
    run(tmp_path, {"a.jsonl": [A, A]})
    capsys.readouterr()
    config = FilterConfig(source_dir=str(tmp_path / "train"), output=str(tmp_path / "out"), workers=1)
    filter_files(config)
    assert "is finished" in capsys.readouterr().out
    write(tmp_path / "train", {"a.jsonl": [A, ["new", "pair"]]})
    filter_files(config)
    assert read(tmp_path / "out") == {"a.jsonl.gz": [A, ["new", "pair"]]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "train"]
