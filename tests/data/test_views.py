"""Views against their definition, counted over many draws, and through the loader."""

import numpy as np
import pytest

from data.drawing import RaggedTexts
from data.loader import batch_with_rows, make_loader
from data.mixture import random_words
from data.packing import row_count
from data.shards import text_id
from data.tokenizer import load_tokenizer
from data.views import make_views
from tests.data.test_loader import (
    WORDS,
    assert_equal,
    batches_of,
    concatenate,
    loader_config,
    prepare_lines,
    text_slots,
    write_tokenizer,
)

PREFIX, SUFFIX = 1001, 1002


def ragged(lengths) -> RaggedTexts:
    """Texts of tokens 0, 1, .. between the special ones."""
    tokens = [np.array([PREFIX, *range(length), SUFFIX], np.int32) for length in lengths]
    ids = np.arange(1, len(lengths) + 1, dtype=np.uint64)
    return RaggedTexts(np.concatenate(tokens), np.array(lengths) + 2, ids, np.array(lengths) > 5)


def views_of(lengths, views, rate, seed=0) -> list[np.ndarray]:
    """The inner tokens of each text's view; special tokens, ids and the truncated texts are checked here."""
    texts = ragged(lengths)
    made = make_views(texts, views, rate, random_words(np.uint64(seed), np.arange(len(lengths))))
    assert made.tokens.dtype == np.int32 and made.lengths.sum() == len(made.tokens)
    assert np.array_equal(made.text_ids, texts.text_ids) and np.array_equal(made.truncated, texts.truncated)
    parts = np.split(made.tokens, np.cumsum(made.lengths)[:-1])
    assert all(part[0] == PREFIX and part[-1] == SUFFIX for part in parts)
    return [part[1:-1] for part in parts]


def test_identical():
    for view, length in zip(views_of([1, 7, 30], "identical", 0.5), [1, 7, 30]):
        assert view.tolist() == list(range(length))


@pytest.mark.parametrize("length, rate", [(1, 0.9), (2, 0.5), (3, 0.9), (10, 0.1), (40, 0.0), (40, 0.3)])
def test_word_dropout(length, rate):
    """Each token stays as often as (1 - rate) n + rate^n of n says, the one of an otherwise empty text included."""
    draws = 20_000
    views = views_of([length] * draws, "word_dropout", rate)
    assert all(len(view) and (np.diff(view) > 0).all() for view in views)
    counts = np.bincount(np.concatenate(views), minlength=length)
    share = (1 - rate) + rate**length / length
    deviation = np.sqrt(draws * share * (1 - share))
    assert np.abs(counts - draws * share).max() <= 5 * deviation
    both = np.mean([len(view) == length for view in views])  # tokens are dropped independently
    assert abs(both - (1 - rate) ** length - (length == 1) * rate) < 5 * np.sqrt(0.25 / draws)


@pytest.mark.parametrize("length, rate, span", [(1, 0.9, 1), (2, 0.9, 1), (10, 0.1, 9), (10, 0.3, 7), (7, 0.0, 7),
                                                (40, 0.5, 20)])
def test_crop(length, rate, span):
    """Spans of one length, at every place equally often."""
    draws = 20_000
    views = views_of([length] * draws, "crop", rate)
    assert all(np.array_equal(view, np.arange(view[0], view[0] + span)) for view in views)
    places = length - span + 1
    counts = np.bincount([view[0] for view in views])
    assert len(counts) == places
    assert np.abs(counts - draws / places).max() <= 5 * np.sqrt(draws / places)


@pytest.mark.parametrize("views", ["word_dropout", "crop"])
def test_a_view_depends_on_its_stream_alone(views):
    lengths = np.random.default_rng(0).integers(1, 30, 200)
    texts, streams = ragged(lengths), random_words(np.uint64(3), np.arange(200))
    together = make_views(texts, views, 0.4, streams)
    parts = np.split(together.tokens, np.cumsum(together.lengths)[:-1])
    for number in (0, 77, 199):
        alone = make_views(ragged(lengths[number : number + 1]), views, 0.4, streams[number : number + 1])
        assert np.array_equal(alone.tokens, parts[number])


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "words", WORDS)


@pytest.fixture(scope="module")
def texts():
    """60 texts of different words each, so that a token's place in its text is known."""
    random = np.random.default_rng(5)
    return [" ".join(random.choice(WORDS, int(random.integers(1, 40)), replace=False)) for _ in range(60)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, tokenizer_folder, texts):
    lines = {
        "pair.jsonl": [[text, "word1"] for text in texts[:20]],
        "triplet.jsonl": [[text, "word2", "word3"] for text in texts[20:40]],
        "set.jsonl": [{"set": [text, "word4", "word5 word6"]} for text in texts[40:]],
    }
    return prepare_lines(tmp_path_factory.mktemp("prepared"), lines, tokenizer_folder)


def config_of(data_dir, **options):
    return loader_config(data_dir, **({"global_batch_size": 32, "packing_blocks": 4, "max_length": 24} | options))


@pytest.mark.parametrize("views", ["identical", "word_dropout", "crop"])
def test_the_loader_shows_two_views_of_the_first_text(data_dir, tokenizer_folder, texts, views):
    tokenizer = load_tokenizer(tokenizer_folder)
    whole = {text_id(text): tokenizer.encode([text])[0][:22].tolist() for text in texts}
    differ = num_tokens = kept = 0
    for batch in batches_of(config_of(data_dir, views=views, view_rate=0.25), range(20)):
        assert batch.texts_per_example == 2
        for block in text_slots(batch):
            assert len(block) == 16
            for (first_id, first), (second_id, second) in zip(block[:8], block[8:]):
                assert first_id == second_id
                for view in (first, second):
                    assert (view[0], view[-1]) == (2, 3)
                    places = [whole[first_id].index(token) for token in view[1:-1].tolist()]
                    assert places == sorted(places) and places
                    num_tokens += len(whole[first_id])
                    kept += len(places)
                differ += not np.array_equal(first, second)
        assert batch.statistics.real_tokens == np.count_nonzero(batch.packed.segments)
    if views == "identical":
        assert differ == 0 and kept == num_tokens
    else:
        assert abs(kept / num_tokens - 0.75) < 0.03 and differ > 400  # of 640 examples


def test_single(data_dir, tokenizer_folder, texts):
    tokenizer = load_tokenizer(tokenizer_folder)
    whole = {text_id(text): [2, *tokenizer.encode([text])[0][:22].tolist(), 3] for text in texts}
    for batch in batches_of(config_of(data_dir, views="single"), range(3)):
        assert batch.texts_per_example == 1 and batch.packed.text_ids.shape == (4, 8, 2)
        assert all(tokens.tolist() == whole[identifier] for block in text_slots(batch) for identifier, tokens in block)


@pytest.mark.parametrize("views", ["word_dropout", "crop"])
def test_hosts_and_packing_do_not_change_views(data_dir, views):
    settings = config_of(data_dir, views=views, view_rate=0.3)
    for step in (0, 5):
        whole = batches_of(settings, [step])[0]
        halves = np.arange(settings.batch.packing_blocks).reshape(2, -1)
        shares = [batches_of(settings, [step], half)[0] for half in halves]
        rows = row_count(max(share.rows_needed for share in shares))
        assert_equal(concatenate([batch_with_rows(share, rows) for share in shares]), whole.packed)
        other = batches_of(config_of(data_dir, views=views, view_rate=0.3, packing_blocks=1), [step])[0]

        def examples(batch):
            """(id, first view, second view) of each example, in any order."""
            found = []
            for block in text_slots(batch):
                half = len(block) // 2
                found += [(one[0], one[1].tolist(), two[1].tolist()) for one, two in zip(block[:half], block[half:])]
            return sorted(found)

        assert examples(other) == examples(whole)


def test_the_seed_and_the_step_decide(data_dir):
    def tokens(seed, step):
        return batches_of(config_of(data_dir, views="word_dropout", seed=seed), [step])[0].packed.tokens

    assert np.array_equal(tokens(0, 3), tokens(0, 3))
    assert not np.array_equal(tokens(0, 3), tokens(0, 4)) and not np.array_equal(tokens(0, 3), tokens(1, 3))


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_bad_rates(data_dir, rate):
    with pytest.raises(ValueError, match=rf"view_rate={rate} is not in \[0, 1\)"):
        make_loader(config_of(data_dir, views="crop", view_rate=rate))
