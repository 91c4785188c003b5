"""Reddit: hand-written threads with known pairs over several files and packings, odd comments, and real ones."""

import bz2
import gzip
import hashlib
import html
import json

import pytest
import zstandard

from data.mine.mine import MineConfig, mine
from data.mine.reddit import REDDIT, RedditSettings, cut, in_training_split
from tests.data.mine.test_mine import files_of, read_output

JANUARY, FEBRUARY = 1420070400, 1422748800  # of 2015


def comment(number, parent, body, thread="t1", **more):
    """A comment; a parent without prefix is a comment, one that is None the post itself."""
    parent = f"t3_{thread}" if parent is None else f"t1_{parent}"
    return {"id": number, "parent_id": parent, "link_id": f"t3_{thread}", "body": body, "author": "someone",
            "created_utc": JANUARY} | more


def write(path, comments, pack=bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack("".join(json.dumps(each) + "\n" for each in comments).encode()))
    return path


def run(output, *inputs, workers=1, memory=64, **rules):
    rules = RedditSettings(**{"split": "both", "train_share": 1.0} | rules)
    mine(REDDIT, MineConfig(tuple(map(str, inputs)), str(output), workers, memory, rules))
    return json.loads((output / "manifest.json").read_text())


def zstd(data):
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=31, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


CHAIN = [comment("c0", None, "turn number 0")] + [
    comment(f"c{i}", f"c{i - 1}", f"turn number {i}", created_utc=FEBRUARY + 0.5) for i in range(1, 13)]


@pytest.mark.parametrize("name, pack", [
    ("RC_2015-02.zst", zstd), ("RC_2015-02.bz2", bz2.compress), ("RC_2015-02", bytes), ("x.jsonl.gz", gzip.compress),
    ("x.jsonl", lambda data: data.decode().encode("utf-16")),
])
def test_chains_over_two_files(tmp_path, name, pack):
    """The parent of the second file's first comment is in the first file, whichever is named first."""
    january = write(tmp_path / "RC_2015-01.jsonl", CHAIN[:1])
    february = write(tmp_path / name, CHAIN[1:], pack)
    run(tmp_path / "out", february, january)
    assert read_output(tmp_path / "out", "reddit/reddit_2015") == [
        [f"turn number {i}", f"turn number {i - 1}"] for i in range(1, 13)]
    assert read_output(tmp_path / "out", "reddit_contexts/reddit_2015") == [
        [f"turn number {i}", "\n".join(f"turn number {j}" for j in range(max(0, i - 10), i))] for i in range(2, 13)]


def test_the_rules(tmp_path):
    manifest = run(tmp_path / "out", write(tmp_path / "a.jsonl", [
        comment("a", None, "x" * 127), comment("b", "a", "y" * 9), comment("c", "a", "y" * 8),
        comment("d", "a", "y" * 128), comment("e", "d", "y" * 20), comment("f", "c", "y" * 20),
        comment("g", "a", "[deleted]"), comment("h", "g", "y" * 20), comment("i", "a", " [removed]\n"),
        comment("j", "zzz", "y" * 20), comment("k", "k", "its own parent"), comment("b", "a", "b once more"),
        comment("l", "m", "a loop of two"), comment("m", "l", "a loop, the other"),
        comment("n", "a", "a &amp;&lt; b \n\n &gt; c", author="[deleted]"),
        comment("o", "a", 5), comment("p", "a", "y" * 20) | {"link_id": None}, {"body": "no keys"}, ["a list"],
        comment("q", "a", "half \ud83d, null \0", created_utc="1420070400"),
    ]))
    assert read_output(tmp_path / "out", "reddit/reddit_2015") == [
        ["y" * 9, "x" * 127], ["a loop of two", "a loop, the other"], ["a loop, the other", "a loop of two"],
        ["a &< b > c", "x" * 127], ["half \ufffd, null", "x" * 127]]
    assert manifest["left_out"] == {
        "comment that answers a post, not a comment": 1,
        "comment shorter than --min_length": 1, "comment longer than --max_length": 1,
        "parent shorter than --min_length": 1, "parent longer than --max_length": 1,
        "comment that is deleted or removed": 2, "parent that is deleted or removed": 1,
        "comment whose parent is not in the dumps": 2, "comment that is in the dumps twice": 1,
        "comment without a text, id, parent or thread": 2,
        "a JSON object without parent_id, link_id": 1, "not a JSON object": 1,
    }


def test_flags(tmp_path):
    path = write(tmp_path / "a.jsonl", [
        comment("a", None, "the first turn of all"), comment("b", "a", "naughty", over_18=True),
        comment("c", "b", "beep", author="Some_Bot"), comment("d", "c", "[deleted]"),
        comment("e", "d", "good, but I am a bot."), comment("f", "e", "a long turn that is cut at a word"),
        comment("g", "f", "short one"), comment("h", "g", "the last", created_utc="no time")])
    run(tmp_path / "all", path, min_length=1, max_length=21, deleted=True, earlier_turns=3, attribution=True)
    assert [first for first, _ in read_output(tmp_path / "all", "reddit/reddit_2015")] == [
        "naughty", "beep", "[deleted]", "good, but I am a bot."]
    assert read_output(tmp_path / "all", "reddit_contexts/reddit_undated") == [
        ["the last", "[deleted]\ngood, but I am a bot.\na long turn that is\nshort one"]]
    with gzip.open(tmp_path / "all" / "reddit" / "reddit_undated.attribution.gz", "rt") as file:
        assert [json.loads(line) for line in file] == [
            [{"thread": "t1", "comment": each, "author": "someone"} for each in "hg"]]
    manifest = run(tmp_path / "few", path, min_length=1, max_length=60, over_18=False, bots=False)
    assert read_output(tmp_path / "few", "reddit_contexts/reddit_undated") == [
        ["the last", "a long turn that is cut at a word\nshort one"]]
    assert manifest["left_out"]["comment marked over 18"] == 1 and manifest["left_out"]["comment by a bot"] == 2
    assert [cut("one two", length) for length in (7, 6, 4, 3, 2)] == ["one two", "one", "one", "one", "on"]


def test_the_split(tmp_path):
    """Each thread is in one split; the share is that of the 4096 buckets below it."""
    threads = [f"{number:x}" for number in range(3000)]
    names = [f"{number:x}" for number in range(40_000)]
    buckets = {int(hashlib.md5(name.encode()).hexdigest(), 16) % 4096: name for name in names}
    assert {bucket: in_training_split(buckets[bucket]) for bucket in (0, 3685, 3686, 4095)} == {
        0: True, 3685: True, 3686: False, 4095: False}  # 3686 / 4096 < 0.9 < 3687 / 4096
    train = [thread for thread in threads if in_training_split(thread)]
    assert 0.88 < len(train) / 3000 < 0.92
    path = write(tmp_path / "a.jsonl", [each for name in threads[:200] for each in (
        comment(f"a{name}", None, "a first comment", name), comment(f"b{name}", f"a{name}", name * 9, name))])
    run(tmp_path / "both", path, train_share=0.9)
    manifest = run(tmp_path / "train", path, train_share=0.9, split="train")
    expected = {thread * 9 for thread in train if thread in threads[:200]}
    for folder, name in (("both", "reddit"), ("train", "reddit")):
        assert {first for first, _ in read_output(tmp_path / folder, f"{name}/reddit_2015")} == expected
    assert len(read_output(tmp_path / "both", "reddit_test/reddit_2015")) == 200 - len(expected)
    assert list(manifest["outputs"]) == ["reddit/reddit_2015"]
    assert manifest["left_out"]["comment of a thread in the test split"] == 2 * (200 - len(expected))


def test_bigquery(tmp_path):
    """BigQuery exports every number as a string, in files without a telling name."""
    rows = [{key: str(value) for key, value in each.items()} | {"name": "t1_" + each["id"], "score": "1",
                                                                "score_hidden": False} for each in CHAIN]
    for row in rows[::2]:
        del row["id"]
    write(tmp_path / "in" / "reddit_comments-000000000000.json", rows[:5])
    write(tmp_path / "in" / "reddit_comments-000000000001", rows[5:])
    write(tmp_path / "in" / "RS_2015-01.zst", [{"title": "a post"}], zstd)
    run(tmp_path / "out", tmp_path / "in")
    assert len(read_output(tmp_path / "out", "reddit/reddit_2015")) == 12


@pytest.mark.parametrize("name, data, message", [
    ("RS_2015.jsonl", b'{"title": "a post", "selftext": ""}\n' * 3, r"RS_2015\.jsonl: line 1 is a JSON object without "
     "body, parent_id, link_id, and no line is a JSON object with the keys body, parent_id, link_id"),
    ("a.jsonl", b"", "nothing was mined"),
    ("a.zst", zstd(b"x" * 10_000)[:-2] + b"yy", r"a\.zst is damaged|line 1 is not JSON"),
])
def test_wrong_files(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", tmp_path / name)


def test_a_file_that_is_cut_short(tmp_path):
    data = "".join(json.dumps(each) + "\n" for each in CHAIN * 2000).encode()
    path = tmp_path / "RC_2015-01.zst"
    path.write_bytes(zstd(data)[:-5])
    manifest = run(tmp_path / "out", path)
    assert "RC_2015-01.zst is cut short, what is whole was mined" in manifest["notes"][0]
    assert len(read_output(tmp_path / "out", "reddit/reddit_2015")) == 12


def test_real_comments(shared_data, tmp_path):
    """The pairs of a real month beside those of a naive program, by one worker and by two."""
    folder = shared_data / "raw" / "reddit"
    run(tmp_path / "out", folder, workers=2)
    run(tmp_path / "one", folder)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "out")
    data = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(
        (folder / "RC_2005-12.zst").read_bytes()).read()
    comments = {}
    for line in data.splitlines():
        value = json.loads(line)
        comments.setdefault(value["id"], value)
    bodies = {key: " ".join(html.unescape(value["body"]).split()) for key, value in comments.items()}
    good = {key for key, body in bodies.items() if 9 <= len(body) <= 127 and body not in ("[deleted]", "[removed]")}
    expected = sorted([bodies[key], bodies[value["parent_id"][3:]]] for key, value in comments.items()
                      if key in good and value["parent_id"][3:] in good)
    assert sorted(read_output(tmp_path / "out", "reddit/reddit_2005")) == expected and len(expected) == 36
