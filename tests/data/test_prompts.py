"""prepare --query_prompt, --document_prompt: tokens have them, text ids do not, and a folder has one of each."""

import json

import numpy as np
import pytest

from data.shards import open_dataset, read_dataset_manifest, read_manifest, text_id
from data.tokenizer import load_tokenizer
from tests.data.test_prepare import PAIRS, run_prepare, write_lines, write_tokenizer

PROMPTS = {"query_prompt": "one: ", "document_prompt": "two: "}
LINES = {  # file -> (a line of it, its texts)
    "pairs.jsonl": (["red cat", "blue dogs"], ["red cat", "blue dogs"]),
    "triplets.jsonl": (["red", "blue", "cat"], ["red", "blue", "cat"]),
    "lists.jsonl": ({"query": "red", "pos": ["cat", "dog"], "neg": ["bird"]}, ["red", "cat", "dog", "bird"]),
    "columns.tsv": (b"red\tblue", ["red", "blue"]),
}


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source", tmp_path / "out"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    words = [":", "red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "##s"]
    return write_tokenizer(tmp_path_factory.mktemp("model"), words)


def stored_prompts(out, name="a.jsonl"):
    return read_dataset_manifest(out, name)["options"]["prompts"]


@pytest.mark.parametrize("prompts", [PROMPTS, {"query_prompt": "one: "}, {"document_prompt": "two: "}, {}])
def test_tokens_have_the_prompts_and_text_ids_do_not(folders, model, prompts):
    source, out = folders
    for name, (line, _) in LINES.items():
        write_lines(source / name, [line])
    run_prepare(folders, model, **prompts)
    query, document = prompts.get("query_prompt", ""), prompts.get("document_prompt", "")
    for name, (_, texts) in LINES.items():
        [example] = open_dataset(out, name).read([0])
        expected = load_tokenizer(model).encode([query + texts[0], *(document + text for text in texts[1:])])
        assert [text.text_id for text in example.texts] == list(map(text_id, texts))
        for text, tokens in zip(example.texts, expected):
            np.testing.assert_array_equal(text.tokens, tokens)
    described = {"query": query, "document": document}
    assert read_manifest(out)["prompts"] == stored_prompts(out, "pairs.jsonl") == described


@pytest.mark.parametrize("of_folder", [True, False])
def test_a_folder_of_an_older_version(folders, model, capsys, of_folder):
    """An error that says to prepare again; doing so is enough."""
    source, out = folders
    write_lines(source / "a.jsonl", PAIRS)
    write_lines(source / "b.jsonl", PAIRS)
    run_prepare(folders, model)
    path = out / "manifest.json" if of_folder else out / "a.jsonl" / "manifest.json"
    manifest = json.loads(path.read_text())
    del (manifest if of_folder else manifest["options"])["prompts"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest.json has no 'prompts': an older version .* prepare` with"):
        open_dataset(out, "a.jsonl")
    run_prepare(folders, model)
    assert len(open_dataset(out, "a.jsonl")) == len(PAIRS)
    assert ("was finished" in capsys.readouterr().out) or not of_folder


def test_other_prompts_prepare_again(folders, model, capsys):
    source, out = folders
    write_lines(source / "a.jsonl", PAIRS)
    for prompts in ({}, PROMPTS, PROMPTS | {"query_prompt": ""}):
        for finished in (False, True):
            run_prepare(folders, model, **prompts)
            assert ("was finished" in capsys.readouterr().out) == finished
    assert stored_prompts(out) == read_manifest(out)["prompts"] == {"query": "", "document": "two: "}


def test_a_folder_has_the_same_prompts_throughout(folders, model):
    source, out = folders
    write_lines(source / "a.jsonl", PAIRS)
    run_prepare(folders, model, **PROMPTS)
    before = read_manifest(out)
    (source / "a.jsonl").rename(source / "b.jsonl")
    with pytest.raises(ValueError, match=r"out/a\.jsonl was prepared with Prompts\(query='one: ', .* not Prompts"):
        run_prepare(folders, model)
    assert read_manifest(out) == before
    run_prepare(folders, model, **PROMPTS)
    assert [dataset["name"] for dataset in read_manifest(out)["datasets"]] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("name, line, texts", [
    ("a.jsonl", {"set": ["red", "blue"]}, ["red", "blue"]), ("a.txt", b"red cat", ["red cat", "red cat"]),
])
def test_texts_without_roles_take_one_prompt(folders, model, name, line, texts):
    source, out = folders
    write_lines(source / name, [line])
    with pytest.raises(ValueError, match=rf"{name}: its texts are neither .* --query_prompt='one: ' and --d"):
        run_prepare(folders, model, **PROMPTS)
    run_prepare(folders, model, query_prompt="one: ", document_prompt="one: ")
    [example] = open_dataset(out, name).read([0])
    for text, tokens in zip(example.texts, load_tokenizer(model).encode(["one: " + text for text in texts])):
        np.testing.assert_array_equal(text.tokens, tokens)


def test_a_prompt_begins_with_a_letter(folders, model):
    with pytest.raises(ValueError, match="--document_prompt=' two: ' begins with white space"):
        run_prepare(folders, model, document_prompt=" two: ")
