"""Dumps with flipped bits and cuts, bombs: mine ends with a manifest or with an error that names the file."""

import gzip
import random
import tracemalloc

import pytest
import zstandard

from data.mine import xml_reading
from data.mine.mine import MineConfig, mine
from data.mine.reddit import REDDIT
from data.mine.stackexchange import STACKEXCHANGE
from tests.data.mine.test_reddit import CHAIN, write
from tests.data.mine.test_stackexchange import LINKS, POSTS, seven_zip


def dumps(folder):
    """{name: (source, the dump's bytes)}, whole."""
    return {
        "Posts.xml": (STACKEXCHANGE, POSTS), "Posts.xml.gz": (STACKEXCHANGE, gzip.compress(POSTS)),
        "sky.7z": (STACKEXCHANGE, seven_zip(folder / "7z", {"Posts.xml": POSTS, "PostLinks.xml": LINKS}).read_bytes()),
        "RC.jsonl": (REDDIT, write(folder / "a", CHAIN).read_bytes()),
        "RC.zst": (REDDIT, write(folder / "b", CHAIN, zstandard.compress).read_bytes()),
    }


@pytest.mark.parametrize("name", ["Posts.xml", "Posts.xml.gz", "sky.7z", "RC.jsonl", "RC.zst"])
def test_flipped_bits_and_cuts(tmp_path, name):
    rng = random.Random(name)
    source, whole = dumps(tmp_path)[name]
    ends = set()
    for run in range(15):
        folder = tmp_path / f"{run}"
        folder.mkdir()
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(data[:rng.randrange(len(data))] if run % 3 == 0 else data)
        try:
            mine(source, MineConfig((str(folder / name),), str(folder / "out"), 1, 64, source.settings()))
            ends.add("manifest")
            assert (folder / "out" / "manifest.json").exists()
        except ValueError as error:
            ends.add("error")
            assert name in str(error) or "nothing was mined" in str(error)
            assert not (folder / "out" / "manifest.json").exists()
    assert ends


def test_bombs(tmp_path, monkeypatch):
    """A dump of entities is refused, and so is a tag that never ends, in bounded memory."""
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    path = tmp_path / "Posts.xml"
    path.write_text(f'<!DOCTYPE posts [<!ENTITY a0 "lol">{entities}]><posts><row Id="&a11;"/></posts>')
    config = MineConfig((str(path),), str(tmp_path / "out"), 1, 64, STACKEXCHANGE.settings())
    with pytest.raises(ValueError, match=r"Posts\.xml: the XML has a document type declaration"):
        mine(STACKEXCHANGE, config)
    monkeypatch.setattr(xml_reading, "MAX_ELEMENT_BYTES", 1 << 22)
    path.write_bytes(gzip.compress(POSTS.removesuffix(b"</posts>") + b'<row Id="99" Body="' + b"x" * 50_000_000, 1))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"Posts\.xml: line \d+: a tag longer than 4,194,304 bytes"):
        mine(STACKEXCHANGE, config)
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()
