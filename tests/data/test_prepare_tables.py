"""prepare with settings of each dataset, and with tables and hub folders as training files."""

import json

import pytest

from data.prepare import PrepareConfig, prepare
from data.shards import find_prompts, open_dataset, read_dataset_manifest, read_manifest, text_id
from data.teacher_store import read_texts
from data.tokenizer import load_tokenizer
from tests.data.test_prepare import run_prepare, write_lines, write_tokenizer
from tests.data.test_tables import parquet, write


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("model"), ["one", "two", "red", "cat", "query", "answer", ":"])


def test_prepare_with_settings_of_each_dataset(tmp_path, model, capsys):
    """Columns and prompts of data_config come before those of the flags, and are in the manifests."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    parquet(source / "a.parquet", {"q": ["one", "two"], "p": ["red", "cat"]})
    write_lines(source / "b.jsonl", [{"question": "one", "answer": "two"}])
    write_lines(source / "c.jsonl", [{"set": ["one", "red"]}])
    entries = [{"name": "a.parquet", "weight": 2, "columns": {"query": "p", "positive": "q"}, "query_prompt": ""},
               {"name": "b.jsonl", "weight": 1}, {"name": "c.jsonl", "weight": 1, "query_prompt": "query:",
                                             "document_prompt": "query:"},
               {"name": "d.csv", "weight": 9, "lines": 5}]
    (tmp_path / "config.json").write_text(json.dumps(entries))
    options = {"data_config": str(tmp_path / "config.json"), "columns": ("query=question", "positive=answer"),
               "query_prompt": "query:", "document_prompt": "answer:"}
    with pytest.raises(ValueError, match=r"d\.csv: 5 lines\n.*1 of its 4 files, of 5 lines, are missing"):
        run_prepare((source, out), model, **options)
    for finished in (False, True):
        run_prepare((source, out), model, allow_missing=True, **options)
        printed = capsys.readouterr()
        assert "d.csv: 5 lines" in printed.err and printed.out.count("(was finished)") == 3 * finished
    words = {name: [open_dataset(out, name).read([0])[0].texts[i] for i in (0, 1)] for name in
             ("a.parquet", "b.jsonl", "c.jsonl")}
    assert [text.text_id for text in words["a.parquet"]] == [text_id("red"), text_id("one")]
    lengths = {name: [text.full_length for text in texts] for name, texts in words.items()}
    assert lengths == {"a.parquet": [1, 3], "b.jsonl": [3, 3], "c.jsonl": [3, 3]}
    manifest = read_dataset_manifest(out, "a.parquet")
    assert manifest["options"]["prompts"] == {"query": "", "document": "answer:"} and manifest["lines"] == 2
    assert find_prompts(out, ["a.parquet"]) == {"query": "", "document": "answer:"}
    run_prepare((source, out), model, allow_missing=True, **options | {"query_prompt": "", "document_prompt": ""})
    assert find_prompts(out, ["a.parquet", "b.jsonl"]) == {}
    assert find_prompts(out, ["a.parquet", "c.jsonl"]) == {"query": "query:", "document": "query:"}
    assert [entry["name"] for entry in json.loads((out / "data_config.json").read_text())] == [
        "a.parquet", "b.jsonl", "c.jsonl"]


@pytest.mark.parametrize("entry, reason", [
    ({"columns": 3}, '"columns" must be a text'), ({"columns": "query=a"}, '"columns" names no column for positive'),
    ({"query_prompt": 3}, '"query_prompt" must be a text, not 3'),
    ({"lines": "7"}, '"lines" must be a number of lines'),
    ({"document_prompt": " x"}, '"document_prompt"=\' x\' begins with white space'),
])
def test_bad_settings_of_a_dataset_are_named(tmp_path, model, entry, reason):
    write_lines(tmp_path / "a.jsonl", [["one", "two"]])
    (tmp_path / "c.json").write_text(json.dumps([{"name": "a.jsonl", "weight": 1} | entry]))
    with pytest.raises(ValueError, match=rf"c\.json: .*a\.jsonl.*{reason}"):
        prepare(PrepareConfig(str(tmp_path), str(model), str(tmp_path / "out"), str(tmp_path / "c.json"), workers=1))


@pytest.mark.parametrize("flags, reason", [
    (("--columns=query=a",), "--columns names no column for positive"), (("--columns=a",), "'a' is not ROLE=COLUMN"),
    (("--columns=query=a,positive=b", "--tsv=parallel"), "--columns and --tsv=parallel both say"),
])
def test_bad_flags(run_main, tmp_path, flags, reason):
    done = run_main("prepare", f"--source_dir={tmp_path}", "--tokenizer=x", f"--data_dir={tmp_path}/o", *flags,
                    check=False)
    assert done.returncode == 2 and reason in done.stderr.splitlines()[-1]


def test_the_published_data_config(tmp_path, minilm):
    """The 290 files of all-MiniLM-L6-v2: none is there but one, and all others are listed with their lines."""
    from data.data_config import read_entries
    from data.sources import check_files

    entries = read_entries(minilm / "data_config.json")
    assert (len(entries), sum(entry.lines for entry in entries), sum(entry.weight for entry in entries)) == (
        290, 1_170_060_424, 4737)
    (tmp_path / entries[0].name).parent.mkdir(parents=True)
    write_lines(tmp_path / entries[0].name, [["one", "two"]])
    present, notice = check_files(tmp_path, "data_config.json", tmp_path / "out", entries, allow_missing=True)
    assert present == entries[:1] and len(notice.splitlines()) == 290
    lines = 1_170_060_424 - entries[0].lines
    assert notice.endswith(f"289 of its 290 files, of {lines:,} lines, are missing: they are left out")


def test_a_teacher_reads_the_same_texts(tmp_path, model):
    """teach reads the sources again, by the columns that the manifest keeps."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    parquet(source / "a.parquet", {"q": ["one", "two"], "p": [["red", "cat"], ["cat"]]})
    write(source / "b.csv", 'id,p,q\n1,"red\ncat",one\n2,two,cat\n')
    run_prepare((source, out), model, columns=("query=q", "positive=p"))
    tokenizer = load_tokenizer(model)
    texts = {name: [each.texts for each in read_texts(source, open_dataset(out, name), tokenizer)]
             for name in ("a.parquet", "b.csv")}
    assert texts == {"a.parquet": [("one", "red", "cat"), ("two", "cat")],
                     "b.csv": [("one", "red\ncat"), ("cat", "two")]}


def test_a_hub_folder_is_prepared(tmp_path, model):
    """The training split of every configuration, whatever its format; each file is a dataset."""
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "data").mkdir(parents=True)
    (source / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
                                      "    path: data/train-*\n  - split: test\n    path: data/test-*\n---\n")
    for name, query in (("train-0-of-2", "one"), ("train-1-of-2", "two"), ("test-0-of-1", "cat")):
        parquet(source / "data" / f"{name}.parquet", {"anchor": [query], "positive": ["red"]})
    run_prepare((source, out), model, columns=("query=anchor", "positive=positive"))
    names = [dataset["name"] for dataset in read_manifest(out)["datasets"]]
    assert names == ["data/train-0-of-2.parquet", "data/train-1-of-2.parquet"]
    assert [open_dataset(out, name).read([0])[0].query.text_id for name in names] == [text_id("one"), text_id("two")]
