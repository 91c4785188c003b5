"""XML as a stream of elements: hand-written documents, cut ones, damaged ones and bombs."""

import random
import tracemalloc

import pytest

from data.mine import xml_reading
from data.mine.source import Counts
from data.mine.xml_reading import elements

DUMP = """<?xml version="1.0" encoding="utf-8"?>
<wiki xmlns="http://x.org/"><info>left out</info>
 <page id="1"><title>A &lt;b&gt; &#xA;&amp;</title><text>one</text></page>
 <page id="2"><title>Ä𝄞</title><text/></page>
</wiki>
"""


def pieces(data, size):
    return (data[start:start + size] for start in range(0, len(data), size))


def parse(data, size=1000, names=("page",), **options):
    counts = Counts()
    return list(elements(pieces(data, size), "dump.xml", names, counts, **options)), counts


@pytest.mark.parametrize("size", [1, 7, 5000])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-mark"])
def test_elements(size, encoding):
    text = DUMP.replace('encoding="utf-8"', 'encoding="utf-16"') if "16" in encoding else DUMP
    data = b"\xfe\xff" + text.encode("utf-16-be") if "mark" in encoding else text.encode(encoding)
    found, counts = parse(data, size, root="wiki")
    assert [(each.get("id"), each.findtext("title"), each.findtext("text")) for each in found] == [
        ("1", "A <b> \n&", "one"), ("2", "Ä𝄞", "")]
    assert not counts and not counts.notes


def test_a_declared_encoding():
    data = '<?xml version="1.0" encoding="ISO-8859-1"?><a><page id="é"/></a>'.encode("latin-1")
    assert parse(data)[0][0].get("id") == "é"


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_forbidden_characters(size):
    data = b'<a><page id="x&#x0;&#0011;&#xd800;&#x110000;&#xA;&#65;\x00\x1f\xff\xed\xa0\x80"/></a>'
    value = parse(data, size)[0][0].get("id")
    assert value.replace("\ufffd", "") == "x\nA" and value.startswith("x\ufffd\ufffd\ufffd\ufffd\nA\ufffd\ufffd")


def test_a_cut_document_yields_what_is_whole():
    data = DUMP.encode()
    for length in range(70, len(data) - 8, 11):
        found = []
        with pytest.raises(EOFError, match=r"ends in line \d"):
            for each in elements(pieces(data[:length], 64), "dump.xml", ("page",), Counts()):
                found.append(each.get("id"))
        assert found == [number for number in "12" if
                         0 <= data.find(b"</page>", data.find(b'"%s"' % number.encode())) <= length - 7]


@pytest.mark.parametrize("data, message", [
    (b"<a><page></a>", "dump.xml: line 1: not well-formed XML: mismatched tag"),
    (b"\n\n<a><page x='&evil;'/></a>", "line 3: not well-formed XML: undefined entity"),
    (b"no xml", "line 1: not well-formed"),
    (b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', "document type declaration <!DOCTYPE a>"),
    (b'<!DOCTYPE a SYSTEM "http://x.org/a.dtd"><a/>', "document type declaration"),
    (b"<b/>", "the root element is <b>, not <a>"),
    (b"<a>" * 300, "nested deeper than 200"),
])
def test_documents_that_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        parse(data, root="a")


def test_large_elements_are_left_out(monkeypatch):
    monkeypatch.setattr(xml_reading, "MAX_ELEMENT_BYTES", 1 << 19)
    pages = "".join(f'<page id="{number}"><text>{"x" * length}</text></page>'
                    for number, length in enumerate((10, 1 << 20, 20)))
    nested = '<page id="3">' + "<b/>" * 10_000 + "</page>"
    found, counts = parse(f"<a>{pages}{nested}<page id='4'/></a>".encode(), 1 << 14)
    assert [each.get("id") for each in found] == ["0", "2", "4"]
    assert counts == {"<page> longer than 524,288 bytes": 2}
    with pytest.raises(ValueError, match="a tag longer than 524,288 bytes"):
        parse(b"<a><page id='" + b"x" * (1 << 21), 1 << 14)


def test_memory_is_bounded():
    def document():
        yield b"<a>"
        for number in range(4000):
            yield b"<page><text>" + b"%d " % number * 3000 + b"</text></page><other>" + b"y" * 9000 + b"</other>"
        yield b"</a>"

    tracemalloc.start()
    assert sum(1 for _ in elements(document(), "dump.xml", ("page",), Counts())) == 4000  # 90 MB
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


def test_flipped_bits_give_errors_of_one_kind():
    rng = random.Random(0)
    for _ in range(300):
        data = bytearray(DUMP.encode())
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            parse(bytes(data), 50)
        except (ValueError, EOFError) as error:
            assert str(error)
