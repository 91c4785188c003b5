"""A teacher's embeddings beside the tokens: bytes, binding to texts, the loader's targets. The teacher is a hash."""

import json
import pathlib
import shutil
import zlib

import numpy as np
import pytest

import data.writer
from data.drawing import NO_TEXT
from data.loader import make_loader
from data.mixture import random_words
from data.prepare import PrepareConfig, prepare
from data.shards import open_dataset, text_id
from data.teacher_store import (
    DTYPES,
    FORMAT_VERSION,
    Teacher,
    encode_embeddings,
    find_teacher,
    gather_embeddings,
    is_finished,
    open_embeddings,
    read_texts,
    require_same_source,
    store_folder,
    write_embeddings,
)
from data.tokenizer import load_tokenizer
from tests.data.test_loader import (
    WORDS,
    batches_of,
    loader_config,
    prepare_lines,
    random_lines,
    text_slots,
    write_tokenizer,
)

WIDTH = 5


def embedding_of(text_ids, dtype="float32"):
    """[..., WIDTH] in -0.5 .. 0.5, a function of the id alone; zeros for id 0."""
    text_ids = np.asarray(text_ids, np.uint64)[..., None]
    words = random_words(text_ids, np.arange(WIDTH)) >> np.uint64(40)
    values = (words / 2.0**24 - 0.5).astype(np.float32).astype(DTYPES[dtype])
    return np.where(text_ids == 0, np.zeros((), values.dtype), values)


def description(fingerprint, texts="all", dtype="float32"):
    return {"format": FORMAT_VERSION, "teacher": "hash", "fingerprint": fingerprint, "width": WIDTH, "texts": texts,
            "dtype": dtype, "normalize": False}


def write_store(data_dir, name, fingerprint, texts="all", dtype="float32", order=None):
    dataset = open_dataset(data_dir, name)
    examples = dataset.read(range(len(dataset)))
    ids = [np.array([text.text_id for text in example.texts], np.uint64) for example in examples]
    if texts == "first":
        ids = [some[:1] for some in ids]
    records = [encode_embeddings(some, embedding_of(some, dtype)) for some in ids]
    if order is not None:
        records = [records[index] for index in order]
    write_embeddings(data_dir, dataset, description(fingerprint, texts, dtype), records)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "words", WORDS)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, tokenizer_folder):
    random = np.random.default_rng(0)
    sizes = {"pair": 37, "triplet": 50, "set": 23, "lists": 40, "scored": 5}
    lines = {f"{kind}.jsonl": random_lines(random, kind, size) for kind, size in sizes.items()}
    folder = prepare_lines(tmp_path_factory.mktemp("prepared"), lines, tokenizer_folder, records_per_shard=15)
    for name in lines:
        write_store(folder, name, "whole")
        write_store(folder, name, "half", dtype="float16")
        write_store(folder, name, "first", texts="first")
    return folder


def config_of(data_dir, tmp_path, names=None, **options):
    path = ""
    if names:
        path = str(tmp_path / "data_config.json")
        (tmp_path / "data_config.json").write_text(json.dumps([{"name": name, "weight": 1} for name in names]))
    return loader_config(
        data_dir, data_config=path, **({"global_batch_size": 32, "packing_blocks": 4, "max_length": 24} | options)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_records_are_read_as_they_were_written(dtype):
    random = np.random.default_rng(1)
    counts = random.integers(1, 6, 40)
    ids = [random.integers(1, 2**64, count, np.uint64) for count in counts]
    embeddings = [random.standard_normal((count, 7)).astype(DTYPES[dtype]) for count in counts]
    records = [encode_embeddings(*record) for record in zip(ids, embeddings)]
    assert records[0][:12] == bytes([1, dtype == "float16", 0, 0, counts[0], 0, 0, 0, 7, 0, 0, 0])
    assert len(records[0]) == 12 + counts[0] * (8 + 7 * DTYPES[dtype].itemsize)
    examples = random.integers(0, 40, 200)
    places = random.integers(-1, 6, 200)
    teacher = Teacher("f", 7, "all", dtype, False)
    text_ids, rows = gather_embeddings(records, examples, places, teacher)
    assert (text_ids.dtype, rows.dtype, rows.shape) == (np.uint64, np.float32, (200, 7))
    for example, place, identifier, row in zip(examples, places, text_ids, rows):
        if place == NO_TEXT or place >= counts[example]:
            assert identifier == 0 and not row.any()
        else:
            assert identifier == ids[example][place]
            assert np.array_equal(row, embeddings[example][place].astype(np.float32))
    for wrong, message in ((teacher._replace(width=8), "width 7, not 8"),
                           (teacher._replace(dtype="float16" if dtype == "float32" else "float32"), "has dtype")):
        with pytest.raises(ValueError, match=message):
            gather_embeddings(records, examples, places, wrong)


@pytest.mark.parametrize("mixture", ["example", "dataset"])
@pytest.mark.parametrize("hard_negatives", [True, False])
@pytest.mark.parametrize("dtype", ["whole", "half"])
def test_targets_are_those_of_the_texts_drawn(data_dir, tmp_path, dtype, hard_negatives, mixture):
    settings = config_of(data_dir, tmp_path, teacher=dtype, hard_negatives=hard_negatives, mixture=mixture)
    for step, batch in enumerate(batches_of(settings, range(8))):
        ids = np.array([[identifier for identifier, _ in block] for block in text_slots(batch)], np.uint64)
        expected = embedding_of(ids, {"whole": "float32", "half": "float16"}[dtype]).astype(np.float32)
        assert batch.targets.dtype == np.float32
        assert np.array_equal(batch.targets, expected)
        shares = [batches_of(settings, [step], blocks)[0].targets
                  for blocks in np.arange(settings.batch.packing_blocks).reshape(2, -1)]
        assert np.array_equal(np.concatenate(shares), expected)
    assert batches_of(config_of(data_dir, tmp_path), [0])[0].targets is None


@pytest.mark.parametrize("views, names", [
    ("given", ["pair.jsonl", "triplet.jsonl", "lists.jsonl"]), ("crop", ["pair.jsonl", "set.jsonl"]),
    ("single", ["triplet.jsonl", "set.jsonl"]),
])
def test_targets_of_the_first_texts(data_dir, tmp_path, views, names):
    settings = config_of(data_dir, tmp_path, names, teacher="first", views=views)
    for batch in batches_of(settings, range(4)):
        ids = np.array([[identifier for identifier, _ in block[:8]] for block in text_slots(batch)], np.uint64)
        assert np.array_equal(batch.targets, embedding_of(ids))


def test_targets_of_views(data_dir, tmp_path):
    batch = batches_of(config_of(data_dir, tmp_path, teacher="whole", views="word_dropout"), [1])[0]
    ids = np.array([[identifier for identifier, _ in block] for block in text_slots(batch)], np.uint64)
    assert ids.shape == (4, 16) and np.array_equal(batch.targets, embedding_of(ids))


def test_sets_need_all_texts(data_dir, tmp_path):
    with pytest.raises(ValueError, match=r"set\.jsonl holds sets.*--texts=all"):
        make_loader(config_of(data_dir, tmp_path, teacher="first"))


def test_find_teacher(data_dir, tmp_path):
    names = ["pair.jsonl", "set.jsonl"]
    assert find_teacher(data_dir, names, "half") == Teacher("half", WIDTH, "all", "float16", False)
    message = r"(pair|set)\.jsonl has no embeddings of teacher 123 \(it has those of first, half, whole\): run .*teach"
    with pytest.raises(ValueError, match=message):
        make_loader(config_of(data_dir, tmp_path, names, teacher="123"))


def test_stores_that_do_not_agree(tmp_path, tokenizer_folder):
    lines = {name: [["word1", "word2"], ["word3", "word4 word5"]] * 8 for name in ("a.jsonl", "b.jsonl")}
    folder = prepare_lines(tmp_path / "prepared", lines, tokenizer_folder, records_per_shard=5)
    write_store(folder, "a.jsonl", "t")
    with pytest.raises(ValueError, match=r"b\.jsonl has no embeddings of teacher t \(it has those of none\)"):
        find_teacher(folder, lines, "t")
    write_store(folder, "b.jsonl", "t", texts="first")
    with pytest.raises(ValueError, match=r"a\.jsonl has all texts.*b\.jsonl has first texts"):
        find_teacher(folder, lines, "t")
    write_store(folder, "b.jsonl", "t", order=[1, 0, *range(2, 16)])
    settings = config_of(folder, tmp_path, ["b.jsonl"], teacher="t", global_batch_size=16, packing_blocks=1)
    with pytest.raises(ValueError, match=r"teacher t was shown another text than .*/b\.jsonl has in example [01]: "):
        batches_of(settings, [0])
    path = store_folder(folder, "a.jsonl", "t") / "teacher.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"dataset_shards": ["00000000"]}))
    with pytest.raises(ValueError, match=r"a\.jsonl has changed since teacher t embedded it"):
        find_teacher(folder, ["a.jsonl"], "t")
    path.write_text(json.dumps(json.loads(whole) | {"format": 9}))
    with pytest.raises(ValueError, match="format 9, this code reads 1"):
        find_teacher(folder, ["a.jsonl"], "t")
    path.write_text(whole)
    dataset = open_dataset(folder, "a.jsonl")
    assert is_finished(folder, dataset, description("t"))
    shard = sorted(path.parent.glob("*.arrayrecord"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:50] + b"x" + content[51:])
    with pytest.raises(ValueError, match=rf"{shard.name} has CRC-32 .* run `main.py teach` again"):
        open_embeddings(folder, "a.jsonl", "t")
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard.name} is missing: .* run `main.py teach` again"):
        open_embeddings(folder, "a.jsonl", "t")
    assert not is_finished(folder, dataset, description("t"))


def test_a_full_disk_is_named_and_the_folder_stays_usable(data_dir, monkeypatch):
    real_writer = data.writer.open_writer
    monkeypatch.setattr(data.writer, "open_writer", lambda path: real_writer(pathlib.Path("/dev/full")))
    with pytest.raises(OSError, match=r"cannot write in .*/teacher-full\.partial: .*No space left on device"):
        write_store(data_dir, "pair.jsonl", "full")
    monkeypatch.undo()
    write_store(data_dir, "pair.jsonl", "full")
    assert len(open_embeddings(data_dir, "pair.jsonl", "full")) == 37
    assert not store_folder(data_dir, "pair.jsonl", "full.partial").exists()
    shutil.rmtree(store_folder(data_dir, "pair.jsonl", "full"))


def test_shards_are_like_the_dataset_s(data_dir):
    dataset = open_dataset(data_dir, "triplet.jsonl")
    embeddings = open_embeddings(data_dir, "triplet.jsonl", "whole")
    assert [shard["records"] for shard in embeddings.manifest["shards"]] == [15, 15, 15, 5]
    assert [shard["file"] for shard in embeddings.manifest["shards"]] == [
        shard["file"] for shard in dataset.manifest["shards"]
    ]
    assert len(embeddings) == len(dataset)
    assert embeddings.manifest["source"]["crc32"] == dataset.manifest["source"]["crc32"]


CASES = {  # file name -> (its content, prepare's flags); each has lines that are no examples
    "a.jsonl": (b'["one", "two"]\n{"set": ["a", "b"]}\n["\\u0000", "two"]\n["one", "two"]\n\n["one", "\\u0000"]\n'
                b'["three", "\xff"]\n["\\u0000", "two"]\n["four ", " five"]\n["\\u0000", "\\u0000"]\n', {}),
    "b.jsonl": (b'["one"]\n{"query": "q", "pos": ["one", "two"]}\n{"query": "q", "pos": ["one", "\\u0000"]}\n'
                b'{"query": "q", "pos": ["one"], "neg": ["two"]}\n{"query": "r", "pos": ["one"]}\n', {}),
    "c.tsv": (b"one\ttwo\n\0\ttwo\nthree\tfour", {}),
    "d.tsv": (b"one\ttwo\nthree\tfour\r\n\0\tsix", {"tsv_header": True}),
    "e.tsv": (
        b"en\tde\tfr\none\ttwo\tthree\nfour\t\t\nfive\t\tsix\n\0\tone\tone",
        {"tsv_header": True, "tsv": "parallel"},
    ),
    "e.jsonl": (b'["one", "two"]\n["\\u0000", "two"]\n["one", "\\u0000"]\n["six", "ten"]\n', {"query_prompt": "a "}),
    "f.txt": (b"\n\0\none two\n \0 \nthree\n", {}),
}


def prepare_file(folder, tokenizer, name, content, **options):
    (folder / "source").mkdir(exist_ok=True)
    (folder / "source" / name).write_bytes(content)
    prepare(PrepareConfig(str(folder / "source"), str(tokenizer), str(folder / "data"), workers=1, max_bad_share=0.99,
                          **options))
    return folder / "source", open_dataset(folder / "data", name)


@pytest.mark.parametrize("name", CASES)
def test_texts_are_numbered_as_prepare_numbers_them(tmp_path, tokenizer_folder, name):
    content, options = CASES[name]
    source, dataset = prepare_file(tmp_path, tokenizer_folder, name, content, **options)
    assert dataset.manifest["skipped"]["count"] > 0
    require_same_source(source, dataset)
    examples = list(read_texts(source, dataset, load_tokenizer(tokenizer_folder)))
    assert len(examples) == len(dataset) > 0
    for example, stored in zip(examples, dataset.read(range(len(dataset)))):
        ids = [text.text_id for text in stored.texts]
        assert example.text_ids.tolist() == ids == [text_id(text) for text in example.texts]


def test_a_source_that_is_another(tmp_path, tokenizer_folder):
    tokenizer = load_tokenizer(tokenizer_folder)
    lines = [b"one\ttwo\n", b"three\tfour\n", b"five\tsix\n"]
    source, dataset = prepare_file(tmp_path, tokenizer_folder, "a.tsv", b"".join(lines))

    def reread(content):
        (source / "a.tsv").write_bytes(content)
        return list(read_texts(source, dataset, tokenizer))

    assert len(reread(b"".join(lines))) == 3
    with pytest.raises(ValueError, match=r"a\.tsv:2: its texts are not those of example 1 of a\.tsv: text ids \[\d+"):
        reread(lines[0] + lines[2] + lines[1])
    with pytest.raises(ValueError, match=r"a\.tsv:4: its texts are not those of example 3 of a\.tsv: .* and none"):
        reread(b"".join(lines) + b"one\tone\n")
    with pytest.raises(ValueError, match=r"a\.tsv ends before example 2 of a\.tsv"):
        reread(lines[0] + lines[1])
    found, expected = f"{zlib.crc32(lines[0] + lines[1]):08x}", f"{zlib.crc32(b''.join(lines)):08x}"
    with pytest.raises(ValueError, match=rf"a\.tsv has CRC-32 {found}, a\.tsv was prepared from .*{expected}"):
        require_same_source(source, dataset)
    with pytest.raises(ValueError, match=r"there is no .*/elsewhere/a\.tsv: --source_dir"):
        require_same_source(tmp_path / "elsewhere", dataset)
