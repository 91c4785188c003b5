"""Wikipedia: a hand-written wiki with known pairs in every packing, wikitext, damaged dumps, and real ones."""

import bz2
import collections
import gzip
import html
import io
import itertools
import json
import random

import py7zr
import pytest

from data.mine import reading, wiki_dump, wikipedia
from data.mine.bz2_streams import parallel_chunks
from data.mine.mine import MineConfig, mine
from data.mine.source import Counts
from data.mine.wiki_dump import categories_of
from data.mine.wikipedia import WIKIPEDIA, WikipediaSettings
from data.mine.wikitext import cut_at_sentence, lead_of, plain_text
from tests.data.mine.test_mine import files_of, read_output
from tests.data.test_fuzz import SEED, mutated

SITEINFO = """<siteinfo><sitename>Vikija</sitename><dbname>abwiki</dbname><namespaces>
<namespace key="0" case="first-letter" /><namespace key="4">Vikija</namespace><namespace key="6">Fails</namespace>
<namespace key="8">MediaWiki</namespace><namespace key="10">Taiss</namespace><namespace key="14">Kategoreja</namespace>
</namespaces></siteinfo>"""
FACT = "is a known thing that people have written about for a long time, so that its introduction is long enough"


def page(title, text, namespace=0, redirect=None, model="wikitext"):
    target = f'<redirect title="{html.escape(redirect)}" />' if redirect else ""
    return (f"<page><title>{html.escape(title)}</title><ns>{namespace}</ns><id>{len(title)}</id>{target}<revision>"
            f"<model>{model}</model><text>{html.escape(text)}</text></revision></page>\n")


def article(title, *categories, before="", more=""):
    links = "".join(f"[[Kategoreja:{name}]]\n" for name in categories)
    return page(title, f"{before}'''{title}''' {FACT}.{more}\n\n== More ==\nThe rest of it.\n{links}")


def intro(title):
    return f"{title} {FACT}."


def dump(*pages, siteinfo=SITEINFO):
    return ('<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10">\n'
            f"{siteinfo}\n{''.join(pages)}</mediawiki>\n").encode()


WIKI = dump(
    article("Oak", "Trees", "Hardwood trees of Europe", "1990 births", "Articles without sources"),
    article("Beech", "Trees", "Hardwood trees of Europe", "Seen by trackers"),
    article("Pine", "trees|Pine", "Only one"),
    article("Elm", "Old name", "Seen by trackers", before="{{Infobox|a=[[b]]}}<!-- == x == -->"),
    page("Short", "'''Short''' is short. [[Category:Trees]]"),
    page("Mercury", "'''Mercury''' may be:\n* a planet\n{{Škiršona}}\n[[Category:Trees]]"),
    page("Mercury (disambiguation)", f"{FACT} {FACT}"),
    page("Bank", f"{FACT} {FACT} {{{{disambig|geo}}}}"), page("Spring", f"{FACT} {FACT} {{{{listed}}}}"),
    page("Oak tree", "#REDIRECT [[Oak]]", redirect="Oak"), page("OAK", "#REDIRECT [[Oak]]", redirect="Oak"),
    page("Leaf of oak", "#REDIRECT [[Oak#Leaf]]", redirect="Oak#Leaf"),
    page("Lost", "#REDIRECT [[Nothing]]", redirect="Nothing"), page("Old oak", "#PĀRADRESĀCIJA [[oak]]"),
    page("Script", "x = 1", model="javascript"),
    page("Taiss:Škiršona", "__DISAMBIG__<noinclude>{{Doc}}</noinclude>", 10),
    page("Taiss:Tracker", "{{Hider}}", 10), page("Taiss:Hider", "__HIDDENCAT__", 10),
    page("MediaWiki:Disambiguationspage", "* [[Taiss:Listed]]", 8),
    page("Kategoreja:Trees", "All trees. [[Kategoreja:Plants]]", 14),
    page("Kategoreja:Seen by trackers", "{{tracker}}", 14),
    page("Kategoreja:Old name", "#REDIRECT", 14, "Kategoreja:Trees"),
    page("Vikija:About", f"{FACT} {FACT} [[Category:Trees]]", 4),
)


def run(output, *inputs, workers=1, **rules):
    mine(WIKIPEDIA, MineConfig(tuple(map(str, inputs)), str(output), workers, 64, WikipediaSettings(**rules)))
    return json.loads((output / "manifest.json").read_text())


def write(path, content):
    path.write_bytes(content)
    return path


def pairs_of(output, wiki="abwiki"):
    """The titles of each pair of introductions."""
    with_titles = {text: title for title, text in read_output(output, f"wikipedia_title_intro/{wiki}")}
    return {frozenset(with_titles[text] for text in pair)
            for pair in read_output(output, f"wikipedia_same_category/{wiki}")}


def pairs(*titles):
    return set(map(frozenset, itertools.combinations(titles, 2)))


def test_the_rules(tmp_path):
    manifest = run(tmp_path / "out", write(tmp_path / "abwiki-pages-articles.xml", WIKI))
    assert sorted(read_output(tmp_path / "out", "wikipedia_title_intro/abwiki")) == [
        [title, intro(title)] for title in ("Beech", "Elm", "Oak", "Pine")]
    assert sorted(read_output(tmp_path / "out", "wikipedia_redirect_intro/abwiki")) == [
        ["Oak tree", intro("Oak")], ["Old oak", intro("Oak")]]
    assert pairs_of(tmp_path / "out") == pairs("Oak", "Beech", "Pine", "Elm")
    assert manifest["left_out"] == {
        "article with an introduction shorter than --min_intro": 1,
        "category of fewer than two articles": 1,
        "membership of a category that is hidden": 2,
        "disambiguation page": 4,
        "membership of a category of a date": 1,
        "membership of a category of maintenance, by its name": 1,
        "page that is not wikitext": 1,
        "pair of articles that share another category, too": 1,
        "redirect that differs in case, accents or signs only": 1,
        "redirect to a page that was not mined": 1,
        "redirect to a section": 1,
    }
    with gzip.open(tmp_path / "out" / "wikipedia_redirect_intro" / "abwiki.attribution.gz", "rt") as file:
        assert json.loads(next(file)) == [{"wiki": "abwiki", "page": "Oak", "id": "3"}]
    assert manifest["notes"] == []


def multistream(content, size=900):
    return b"".join(bz2.compress(content[start:start + size]) for start in range(0, len(content), size))


def seven_zip(path, content):
    with py7zr.SevenZipFile(path, "w") as archive:
        archive.writestr(content, "abwiki-pages-articles.xml")
    return path


@pytest.mark.parametrize("packing", ["bz2", "multistream", "7z", "parts"])
def test_every_packing_gives_the_same_pairs(tmp_path, packing):
    run(tmp_path / "plain", write(tmp_path / "abwiki-pages-articles.xml", WIKI))
    (tmp_path / "in").mkdir()
    if packing == "7z":
        seven_zip(tmp_path / "in" / "abwiki-pages-articles.xml.7z", WIKI)
    elif packing == "parts":
        cut = WIKI.index(b"<page><title>Oak tree")
        for number, part in enumerate((WIKI[:cut] + b"</mediawiki>", dump().split(b"</mediawiki>")[0] + WIKI[cut:])):
            write(tmp_path / "in" / f"abwiki-1-pages-articles{number}.xml-p{number}p9.bz2", bz2.compress(part))
    else:
        pack = multistream if packing == "multistream" else bz2.compress
        write(tmp_path / "in" / "abwiki-pages-articles.xml.bz2", pack(WIKI))
    run(tmp_path / "packed", tmp_path / "in", workers=1 if packing == "7z" else 3)
    kinds = ("title_intro", "redirect_intro", "same_category")
    for name in (f"wikipedia_{kind}/abwiki" for kind in kinds):
        assert read_output(tmp_path / "packed", name) == read_output(tmp_path / "plain", name)


def test_a_dump_without_siteinfo_has_english_names(tmp_path):
    links = "[[Category:Trees]] [[Kategoreja:Woods]] [[Image:x|a]]"
    pages = [page(title, f"{intro(title)} {links}") for title in ("Oak", "Elm")]
    manifest = run(tmp_path / "out", write(tmp_path / "cdwiki-x.xml", dump(*pages, siteinfo="")))
    assert "cdwiki-x.xml has no siteinfo" in manifest["notes"][0] and "English" in manifest["notes"][0]
    assert pairs_of(tmp_path / "out", "cdwiki") == pairs("Oak", "Elm")
    assert "Woods" in read_output(tmp_path / "out", "wikipedia_title_intro/cdwiki")[0][1]  # it is no category here


def test_a_dump_that_is_cut_short_gives_what_is_whole(tmp_path):
    cut = WIKI.index(b"Hardwood trees of Europe", WIKI.index(b"<title>Beech"))
    for name, content in (("abwiki.xml", WIKI[:cut]), ("abwiki.xml.bz2", multistream(WIKI)[:-200])):
        manifest = run(tmp_path / f"out-{name}", write(tmp_path / name, content))
        assert f"{name} is cut short, what is whole was mined" in manifest["notes"][0] and len(manifest["notes"]) == 1
        assert ["Oak", intro("Oak")] in read_output(tmp_path / f"out-{name}", "wikipedia_title_intro/abwiki")
    assert len(read_output(tmp_path / "out-abwiki.xml", "wikipedia_title_intro/abwiki")) == 1


@pytest.mark.parametrize("content, reason", [
    (b'<!DOCTYPE mediawiki [<!ENTITY a "b">]>' + dump(article("Oak")), "document type"),
    (b"<posts><row/></posts>", "the root element is <posts>"), (b"no XML", "not well-formed|no XML element"),
    (dump(), "no article in it"), (b'{"a": 1}\n', "no line is a JSON object with the keys title, text"),
])
def test_wrong_files_are_named(tmp_path, content, reason):
    with pytest.raises(ValueError, match=rf"abwiki\.xml.*({reason})"):
        run(tmp_path / "out", write(tmp_path / "abwiki.xml", content))


def test_bad_flags(tmp_path):
    path = write(tmp_path / "abwiki.xml", WIKI)
    with pytest.raises(ValueError, match=r"--skip_categories='\(' is no regular expression"):
        run(tmp_path / "out", path, skip_categories="(")
    assert run(tmp_path / "out", path, skip_categories="trees|.* of Europe")["left_out"][
        "membership of a category that --skip_categories names"] == 6


def test_large_categories_and_draws(tmp_path):
    """A category gives every pair up to its limit, each article about as often; it does not depend on the order."""
    titles = [f"Tree {number:02}" for number in range(12)]
    pages = [article(title, "Woods", *(["Few"] if number < 3 else [])) for number, title in enumerate(titles)]
    paths = [write(tmp_path / f"{name}-ab.xml", dump(*order)) for name, order in (("a", pages), ("b", pages[::-1]))]
    assert run(tmp_path / "all", paths[0], pairs_per_category=66)["outputs"]["wikipedia_same_category/abwiki"][
        "lines"] == 66
    assert pairs_of(tmp_path / "all") == pairs(*titles)
    manifest = run(tmp_path / "some", paths[0], pairs_per_category=12)
    drawn = pairs_of(tmp_path / "some")
    assert len(drawn) == 12 + 3 and manifest["left_out"]["pair beyond --pairs_per_category"] > 40
    uses = [sum(title in pair for pair in drawn) for title in titles]
    assert min(uses) >= 1 and max(uses) <= 5
    run(tmp_path / "reversed", paths[1], pairs_per_category=12)
    assert pairs_of(tmp_path / "reversed") == drawn
    manifest = run(tmp_path / "small", paths[0], max_category=11)
    assert manifest["left_out"]["category of more articles than --max_category"] == 1
    assert pairs_of(tmp_path / "small") == pairs("Tree 00", "Tree 01", "Tree 02")


@pytest.mark.parametrize("name, reason", [
    ("Articles containing video clips", "maintenance"), ("All stub pages", "maintenance"),
    ("Use dmy dates", "maintenance"),
    ("Living people", "maintenance"), ("Vikija tools", "maintenance"), ("CS1 errors: dates", "maintenance"),
    ("1990 births", "date"), ("980s BC deaths", "date"), ("19th-century novelists", "date"), ("2005 albums", "date"),
    ("Awards established in 1929", "date"), ("1990s drama films", "date"), ("747", "date"),
    ("Boeing 747", ""), ("Houses of commons", ""), ("Trees", ""), ("12345 Main Street", ""), ("Birthstones", ""),
])
def test_names_of_categories(name, reason):
    site = wiki_dump.Site("x", {"4": frozenset(("vikija",))}, True)
    found = wikipedia._name_rule(name, site, None)
    assert reason in found and bool(reason) == bool(found)


def test_links_to_categories():
    site = wiki_dump.Site("x", {"14": frozenset(("category", "image of"))}, True)
    text = ("[[Category:a_b  c|sort]] [[ category : D]] [[:Category:no]] <!-- [[Category:no]] --> [[Category:D]]"
            "<nowiki>[[Category:no]]</nowiki> [[Image of:É]] [[Categoryx:no]] [[Category:no\n]] [[Category: ]]")
    assert categories_of(text, site) == ["A b c", "D", "É"]


@pytest.mark.parametrize("wikitext, text", [
    ("'''A''' ''is'' [[B|b]] and [[C]]s, [[:Category:D|d]].", "A is b and Cs, d."),
    ("A<ref name=x>see [[B]]</ref> b<ref name=x/>.<ref>{{cite|x}}</ref>", "A b."),
    ("{{Infobox|a={{b|c}}\n|d=[[e]]}}\n'''A''' is.\n{| class=x\n| cell || b\n|}", "A is."),
    ("A [[File:x.jpg|thumb|250px|a [[link]] here]]b [[attēls:x y.PNG|c]]d [[Category:X]][[de:A]]", "A b d"),
    ("A ({{lang-fr|''Un''}}; {{IPA|x}}) is {{convert|5|km|mi}} {{nowrap|long way}}.", "A (Un) is 5 km long way."),
    ("A ({{IPA|x}}, {{b}}) is (  ) b , c .", "A is b, c."),
    ("x<sub>2</sub> &ndash; y&nbsp;z<br/>w <math>a^2</math>", "x2 – y z w"),
    ("[http://a.b text] [http://a.b] http://a.b/c <nowiki>n</nowiki> {{{arg|given}}}", "text n given"),
    (":''hatnote''\nA\nb\n* c\n# d\n; e\n\nF", "A b\nF"), ("A\n\n{{broken [[b\n\nC", "A\nC"),
    ("<gallery>\nx.jpg|y\n</gallery>A <div>b</div><span>c</span>", "A b c"), ("", ""), ("{{a}}", ""),
    ("A __NOTOC__", ""),
])
def test_wikitext(wikitext, text):
    assert plain_text(wikitext, frozenset(("file", "category"))) == text


def test_leads_and_cuts():
    assert lead_of("A <!-- x\n== y ==\n -->b\n=c=\n== D ==\ne") == "A b\n=c=\n"
    assert lead_of("A <!-- never closed") == "A " and len(lead_of("a" * 300_000)) == 200_000
    text = "One two. Three four! Five"
    assert [cut_at_sentence(text, most) for most in (30, 24, 20, 10, 7, 2)] == [
        text, "One two. Three four!", "One two. Three four!", "One two.", "One", "On"]
    assert cut_at_sentence("第一句。第二句。第三", 9) == "第一句。第二句。"


def test_wikitext_that_nests_deep_or_never_ends():
    for text in ("{{" * 5000, "[[" * 5000, "{{a|" * 300 + "b" + "}}" * 300, "<ref>" * 2000, "''" * 5001, "{|\n" * 3000,
                 "," * 100_000, "( " * 50_000):
        plain_text(f"Good text.\n\n{text}", frozenset())


def test_pages_of_spaces_take_no_longer_than_others():
    site = wiki_dump.site_without_info("x")
    spaces = " " * 200_000
    for text in ("{{" + spaces, "[[category:" + spaces, "[[ " + spaces, "#a" + spaces + ":" + spaces, "=" * 200_000):
        lead_of(text)
        assert categories_of(text, site) == [] and len(wiki_dump.templates_of(text)) == 0
        assert wiki_dump._OLD_REDIRECT.match(text) is None


def test_damaged_dumps_give_pairs_or_an_error_that_names_them(tmp_path):
    for case in range(60):
        path = write(tmp_path / f"abwiki-{case}.xml", mutated(WIKI, random.Random(f"{SEED} wiki {case}")))
        records, counts, settings = collections.defaultdict(list), Counts(), WikipediaSettings()
        try:
            for key, record in wikipedia.scatter((path,), settings, counts):
                records[key].append(json.loads(json.dumps(record)))
            for of_key in records.values():
                for _, pair, by in wikipedia.join(of_key, settings, counts):
                    assert len(pair) == 2 and all(map(str.strip, pair)) and len(by) in (1, 2)
        except ValueError as error:
            assert str(path) in str(error)


def test_wikiextractor(tmp_path):
    lines = [{"id": "7", "url": "https://de.wikipedia.org/wiki?curid=7", "title": "Oak",
              "text": f"Oak\n\n{intro('Oak')}\n\nAnother paragraph."}, {"title": "Short", "text": "Short\n\nis short"},
             {"title": 3, "text": "x"}, {"title": "No text"}]
    for folder, content in (("AA", lines), ("AB", [{"title": "Elm", "text": intro("Elm")}])):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "wiki_00").write_text("\n".join(map(json.dumps, content)))
    manifest = run(tmp_path / "out", tmp_path / "in")
    assert read_output(tmp_path / "out", "wikipedia_title_intro/dewiki") == [["Oak", intro("Oak")]]
    assert read_output(tmp_path / "out", "wikipedia_title_intro/wiki") == [["Elm", intro("Elm")]]
    assert manifest["left_out"] == {"a JSON object without text": 1, "article whose title or text is not a string": 1,
                                    "article with an introduction shorter than --min_intro": 1}


@pytest.mark.parametrize("size", [1, 10, 999, 1 << 20])
def test_bzip2_streams_in_threads(size, monkeypatch):
    """The bytes are those of bz2, whatever the streams' sizes and whether one thread or several read them."""
    content = b"".join(bytes([number % 251]) * 7 + b"BZh91AY" for number in range(3000))
    streams = b"".join(bz2.compress(content[start:start + max(size, 500)]) for start in range(0, len(content), 500))
    packed = streams if size < 500 else b"".join(
        bz2.compress(content[start:start + size]) for start in range(0, len(content), size))
    packed += bz2.compress(b"") + bz2.compress(b"behind an empty stream")
    expected = bz2.decompress(packed)
    for longest in (1 << 23, 100):
        monkeypatch.setattr("data.mine.bz2_streams.LONGEST_PIECE", longest)
        monkeypatch.setattr("data.mine.bz2_streams.FIRST_CHUNK", 64)
        assert b"".join(parallel_chunks(io.BytesIO(packed), 3)) == expected
        chunks = parallel_chunks(io.BytesIO(packed[:-5]), 3)
        with pytest.raises(EOFError):
            list(chunks)
        flipped = bytearray(packed)
        flipped[len(packed) - 20] ^= 255
        with pytest.raises((OSError, EOFError)):
            list(parallel_chunks(io.BytesIO(bytes(flipped)), 2))


def test_one_long_stream_expands_in_bounded_pieces(monkeypatch):
    packed = bz2.compress(bytes(50 << 20))
    sizes = [len(chunk) for chunk in parallel_chunks(io.BytesIO(packed), 2)]
    assert sum(sizes) == 50 << 20 and max(sizes) <= 1 << 25


def test_threads_are_used_by_readers(tmp_path, monkeypatch):
    path = write(tmp_path / "a.bz2", multistream(WIKI))
    monkeypatch.setattr(reading, "helpers", 2)
    assert b"".join(reading.chunks_of(path)) == WIKI


def test_a_whole_real_wiki(shared_data, tmp_path):
    manifest = run(tmp_path / "out", shared_data / "raw/wikipedia/smallwiki-pages-articles.xml.bz2", workers=2)
    titles = dict(read_output(tmp_path / "out", "wikipedia_title_intro/ltgwiki"))
    left_out = manifest["left_out"]
    assert len(titles) + left_out["article with an introduction shorter than --min_intro"] + left_out[
        "disambiguation page"] == 903 and len(titles) > 580
    assert left_out["disambiguation page"] == 7
    assert titles["Gepards"] == ("Gepards irā lels kaču saimis plieseigais zviers. Itys kačs dzeivoj Afrikā i "
                                 "Centraluos Azejis dīnavydūs.")
    found = pairs_of(tmp_path / "out", "ltgwiki")
    assert len(found) > 1000 and len(found) == len(read_output(tmp_path / "out", "wikipedia_same_category/ltgwiki"))
    assert not [text for text in titles.values() if any(mark in text for mark in ("{{", "[[", "<ref", "thumb|", "|}"))]
    assert files_of(tmp_path / "out")


def test_real_english_articles(shared_data, tmp_path):
    manifest = run(tmp_path / "out", shared_data / "raw/wikipedia/enwiki-pages-articles-shortened.xml.bz2")
    titles = dict(read_output(tmp_path / "out", "wikipedia_title_intro/enwiki"))
    assert len(titles) == 95 and manifest["left_out"]["disambiguation page"] == 8
    assert titles["Albania"].startswith("Albania (Shqipëri/Shqipëria; Shqipni/Shqipnia, Shqypni/Shqypnia), officially")
    assert frozenset(("Apollo 11", "Apollo 8")) in pairs_of(tmp_path / "out", "enwiki")


def test_real_files_without_siteinfo_and_of_wikiextractor(shared_data, tmp_path):
    raw = shared_data / "raw/wikipedia"
    assert "no siteinfo" in run(tmp_path / "a", raw / "enwiki-table-markup.xml.bz2")["notes"][0]
    run(tmp_path / "b", raw / "wikiextractor_AA_wiki_00.gz")
    titles = dict(read_output(tmp_path / "b", "wikipedia_title_intro/enwiki"))
    assert len(titles) == 34 and titles["Anarchism"].startswith("Anarchism is a radical political movement that")
    assert Counts().notes == []
