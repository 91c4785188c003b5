"""Drawing from a whole batch of records against decoding one record after the other."""

import numpy as np
import pytest

from data.drawing import NO_TEXT, draw_texts, gather_texts
from data.shards import KINDS, Example, Text, decode_record, encode_record, ragged_arange, read_table

PREFIX, SUFFIX = 101, 102


def random_example(random, dtype):
    kind = KINDS[random.integers(len(KINDS))]
    num_positives, num_negatives = {
        "pair": (1, 0),
        "triplet": (1, 1),
        "set": (int(random.integers(1, 7)), 0),
        "lists": (int(random.integers(1, 4)), int(random.integers(0, 5))),
    }[kind]
    texts = []
    for _ in range(1 + num_positives + num_negatives):
        tokens = random.integers(0, np.iinfo(dtype).max // 2, int(random.integers(1, 20)), dtype)
        full_length = len(tokens) + int(random.integers(0, 2)) * int(random.integers(1, 100_000))
        texts.append(Text(tokens, full_length, int(random.integers(1, 2**64, dtype=np.uint64))))
    scores = random.random(len(texts) - 1).astype(np.float32) if random.random() < 0.3 else None
    return Example(kind, tuple(texts), num_positives, scores)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("max_length", [3, 12, 64])
def test_gather_reads_what_decode_reads(dtype, max_length):
    random = np.random.default_rng(max_length)
    records = [encode_record(random_example(random, np.dtype(dtype))) for _ in range(60)]
    examples = random.integers(0, 60, 300)
    decoded = [decode_record(records[example]) for example in examples]
    places = np.array([int(random.integers(-1, len(example.texts))) for example in decoded])
    texts = gather_texts(read_table(records), examples, places, max_length, PREFIX, SUFFIX)
    parts = np.split(texts.tokens, np.cumsum(texts.lengths)[:-1])
    for slot, (example, place) in enumerate(zip(decoded, places)):
        if place == NO_TEXT:
            assert (texts.lengths[slot], texts.text_ids[slot], texts.truncated[slot]) == (0, 0, False)
            continue
        text = example.texts[place]
        assert parts[slot].tolist() == [PREFIX, *text.tokens[: max_length - 2].tolist(), SUFFIX]
        assert texts.text_ids[slot] == text.text_id
        assert texts.truncated[slot] == (text.full_length > min(len(text.tokens), max_length - 2))


@pytest.mark.parametrize("texts_per_example", [2, 3])
def test_draws_are_allowed_and_even(texts_per_example):
    random = np.random.default_rng(7)
    examples = [random_example(random, np.dtype("<u2")) for _ in range(30)]
    table = read_table([encode_record(example) for example in examples])
    draws = np.stack([
        draw_texts(table, random.integers(0, 2**64, (30, 4), np.uint64), texts_per_example) for _ in range(2000)
    ])  # [draws, K, b]
    for number, example in enumerate(examples):
        query, positive = draws[:, 0, number], draws[:, 1, number]
        if example.kind == "set":
            count = len(example.texts)
            allowed = {(i, j) for i in range(count) for j in range(count) if i != j}
        else:
            allowed = {(0, 1 + j) for j in range(example.num_positives)}
        pairs, counts = np.unique(np.stack([query, positive]), axis=1, return_counts=True)
        assert set(map(tuple, pairs.T.tolist())) == allowed
        expected = 2000 / len(allowed)
        assert (np.abs(counts - expected) < 6 * np.sqrt(expected)).all()
        if texts_per_example == 3:
            negatives = range(1 + example.num_positives, len(example.texts))
            assert set(draws[:, 2, number].tolist()) == (set(negatives) or {NO_TEXT})


def test_another_format_is_an_error():
    record = encode_record(random_example(np.random.default_rng(0), np.dtype("<u2")))
    with pytest.raises(ValueError, match="format 9; this code reads 1"):
        read_table([record, b"\x09" + record[1:]])


def test_ragged_arange():
    assert ragged_arange(np.array([2, 0, 3])).tolist() == [0, 1, 0, 1, 2]
    assert ragged_arange(np.array([], np.int64)).tolist() == []
