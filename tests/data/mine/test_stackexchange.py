"""StackExchange: a hand-written site with known pairs in every packing, damaged dumps, and real sites."""

import bz2
import collections
import gzip
import html
import json
import re
import xml.etree.ElementTree

import py7zr
import pytest

from data.mine.mine import MineConfig, mine
from data.mine.stackexchange import STACKEXCHANGE, StackExchangeSettings, site_of
from tests.data.mine.test_mine import read_output

LONG = "a body that is long enough to pass"
FIELDS = {"question": ("Id", "Score", "Title", "Body"), "answer": ("Id", "ParentId", "Score", "Body")}


def row(**attributes):
    return "  <row " + " ".join(f'{key}="{html.escape(str(value))}"' for key, value in attributes.items()) + " />\r\n"


def question(number, score, title, body=f"<p>{LONG}</p>", **more):
    return row(Id=number, PostTypeId=1, Score=score, Title=title, Body=body, OwnerUserId=100 + number, **more)


def answer(number, parent, score, body):
    return row(Id=number, PostTypeId=2, ParentId=parent, Score=score, Body=body, ContentLicense="CC BY-SA 4.0")


def table(name, *rows):
    return ('<?xml version="1.0" encoding="utf-8"?>\r\n' + f"<{name}>\r\n" + "".join(rows) + f"</{name}>").encode(
        "utf-8-sig")


POSTS = table(
    "posts",
    question(1, 5, "Why is the sky blue in the day?", "<p>Tags like &lt;b&gt;:</p><pre><code>x = 1\n</code></pre>tell"
             " &amp; <b>b</b>old."),
    answer(2, 1, 3, "<p>The best answer: it scatters.</p>"),
    answer(3, 1, 3, "<p>As good, but a later answer.</p>"),
    answer(4, 1, -1, "<p>It is painted every morning.</p>"),
    question(5, 0, "What does <div> do in a document?", "<p>short</p>"),
    answer(6, 5, 200, f"<p>{LONG} six</p>"), answer(7, 5, 100, f"<p>{LONG} seven</p>"),
    question(8, 9, "A short title here", ), answer(9, 8, 1, f"<p>{LONG}</p>"),
    question(10, -1, "A question that has a low score"), answer(11, 10, 1, f"<p>{LONG}</p>"),
    question(12, 1, "Is a question without answers one?"),
    question(13, 1, "Its only answer has a low score, does it?"), answer(14, 13, -2, f"<p>{LONG}</p>"),
    answer(15, 999, 4, f"<p>{LONG}</p>"),
    question(16, 1, "Its answer is too long, is it not?"), answer(17, 16, 1, "y" * 4097),
    row(Id=18, PostTypeId=4, Score=0, Body="the description of a tag"),
    row(Id="x", PostTypeId=1, Score=0, Title="An id that is no number at all", Body=LONG),
)
LINKS = table(
    "postlinks",
    row(Id=1, PostId=12, RelatedPostId=1, LinkTypeId=3), row(Id=2, PostId=12, RelatedPostId=13, LinkTypeId=1),
    row(Id=3, PostId=1, RelatedPostId=12, LinkTypeId=3), row(Id=4, PostId=8, RelatedPostId=1, LinkTypeId=3),
    row(Id=5, PostId=5, RelatedPostId=1, LinkTypeId=3), row(Id=6, PostId=13, RelatedPostId=1234, LinkTypeId=3),
    row(Id=7, PostId=7, RelatedPostId="", LinkTypeId=3),
)
TITLES = {1: "Why is the sky blue in the day?", 5: "What does <div> do in a document?",
          12: "Is a question without answers one?", 13: "Its only answer has a low score, does it?",
          16: "Its answer is too long, is it not?"}
BODY_1 = "Tags like <b>: x = 1 tell & bold."
BEST_1, WORST_1 = "The best answer: it scatters.", "It is painted every morning."
DUPLICATES = "stackexchange_duplicate_questions_{0}_{0}"
EXPECTED = {
    "stackexchange_title_body/S": [
        [TITLES[1], BODY_1], [TITLES[12], LONG], [TITLES[13], LONG], [TITLES[16], LONG]],
    "stackexchange_Title_Answer/S": [[TITLES[1], BEST_1], [TITLES[5], f"{LONG} six"]],
    "stackexchange_TitleBody_Answer/S": [[f"{TITLES[1]} {BODY_1}", BEST_1]],
    "stackexchange_Title_BestAnswer_WorstAnswer/S": [
        [TITLES[1], BEST_1, WORST_1], [TITLES[5], f"{LONG} six", f"{LONG} seven"]],
    DUPLICATES.format("title"): [[TITLES[12], TITLES[1]], [TITLES[5], TITLES[1]]],
    DUPLICATES.format("body"): [[LONG, BODY_1]],
    DUPLICATES.format("title-body"): [[f"{TITLES[12]} {LONG}", f"{TITLES[1]} {BODY_1}"]],
}


def run(output, *inputs, **rules):
    rules = StackExchangeSettings(**{"small_site": 0} | rules)
    mine(STACKEXCHANGE, MineConfig(tuple(map(str, inputs)), str(output), 1, 64, rules))
    return json.loads((output / "manifest.json").read_text())


def outputs_of(folder, site="S"):
    """{output: its sorted lines}, with S for the site."""
    names = [path.relative_to(folder).as_posix().removesuffix(".jsonl.gz") for path in folder.rglob("*.jsonl.gz")]
    return {name.replace("/" + site, "/S"): sorted(read_output(folder, name)) for name in names}


EXPECTED_SORTED = {name: sorted(lines) for name, lines in EXPECTED.items()}


def seven_zip(path, tables, **options):
    with py7zr.SevenZipFile(path, "w", **options) as archive:
        for name, data in tables.items():
            archive.writestr(data, name)
    return path


def plain(folder, posts="Posts.xml", links="PostLinks.xml", pack=bytes):
    folder.mkdir(parents=True)
    (folder / posts).write_bytes(pack(POSTS))
    (folder / links).write_bytes(pack(LINKS))
    return folder / posts


def test_the_rules(tmp_path):
    manifest = run(tmp_path / "out", plain(tmp_path / "sky"))
    assert outputs_of(tmp_path / "out", "sky") == EXPECTED_SORTED
    assert manifest["left_out"] == {
        "question with a title shorter than --min_title": 1,
        "question with a score below --min_score": 1,
        "question with a body shorter than --min_body": 1,
        "question without an answer": 2,
        "question whose best answer has a score below --min_score": 1,
        "answer with a body longer than --max_body": 1,
        "answer without its question": 1,
        "post that is neither question nor answer": 1,
        "post without a whole number as id, score or parent": 1,
        "link without two ids": 1,
        "duplicate of a question that is not in the dump": 1,
        "duplicates of which one breaks a rule for questions": 1,
    }
    with gzip.open(tmp_path / "out" / "stackexchange_Title_Answer" / "sky.attribution.gz", "rt") as file:
        lines = [json.loads(line) for line in file]
    assert [{"post": "sky/q/1", "author": "101", "licence": "CC BY-SA"},
            {"post": "sky/a/2", "author": "", "licence": "CC BY-SA 4.0"}] in lines and len(lines) == 2
    assert [line[0]["post"] for line in lines] == [
        {TITLES[1]: "sky/q/1", TITLES[5]: "sky/q/5"}[title]
        for title, _ in read_output(tmp_path / "out", "stackexchange_Title_Answer/sky")]


@pytest.mark.parametrize("packing", ["gz", "bz2", "named", "7z", "7z links first", "7z of each table", "folder"])
def test_packings(tmp_path, packing):
    site = "sky.stackexchange.com"
    if packing in ("gz", "bz2"):
        pack = {"gz": gzip.compress, "bz2": bz2.compress}[packing]
        source = plain(tmp_path / site, f"Posts.xml.{packing}", f"PostLinks.xml.{packing}", pack)
    elif packing == "named":
        source = plain(tmp_path / "in", f"{site}.Posts.xml", f"{site}.PostLinks.xml")
    elif packing == "folder":
        source = plain(tmp_path / "in" / site).parent.parent
    elif packing == "7z of each table":
        seven_zip(tmp_path / f"{site}-PostLinks.7z", {"PostLinks.xml": LINKS})
        source = seven_zip(tmp_path / f"{site}-Posts.7z", {"Posts.xml": POSTS})
    else:
        tables = {"Badges.xml": b"<badges/>", "Posts.xml": POSTS, "PostLinks.xml": LINKS, "Users.xml": b"<users/>"}
        names = sorted(tables) if packing == "7z links first" else tables
        source = seven_zip(tmp_path / f"{site}.7z", {name: tables[name] for name in names})
    run(tmp_path / "out", source)
    assert outputs_of(tmp_path / "out", site) == EXPECTED_SORTED


def test_flags_and_small_sites(tmp_path):
    for site in ("a", "b"):
        plain(tmp_path / "in" / site)
    manifest = run(tmp_path / "out", tmp_path / "in", small_site=3, code=False, max_body=10_000, min_score=-5,
                   min_title=5, min_body=5, worst_gap=1000)
    counts = {name: entry["lines"] for name, entry in manifest["outputs"].items()}
    of_sites = {name: 2 * count for name, count in {
        "stackexchange_title_body": 7, "stackexchange_Title_Answer": 6, "stackexchange_TitleBody_Answer": 6}.items()}
    assert counts == {f"{name}/{site}": count // 2 for name, count in of_sites.items() for site in "ab"} | {
        "stackexchange_Title_BestAnswer_WorstAnswer/small_stackexchanges": 2} | {
        DUPLICATES.format(kind): 6 for kind in ("title", "body", "title-body")}
    assert [TITLES[1], "Tags like <b>: tell & bold."] in read_output(tmp_path / "out", "stackexchange_title_body/a")


def test_a_site_that_is_cut_short(tmp_path):
    path = plain(tmp_path / "sky")
    path.write_bytes(POSTS[:POSTS.index(b'<row Id="12"') + 30])
    manifest = run(tmp_path / "out", path)
    assert [note.split(": ")[-1] for note in manifest["notes"]] == [
        "the XML ends in line 15, before its root element does"]
    assert outputs_of(tmp_path / "out", "sky")["stackexchange_Title_Answer/S"] == EXPECTED_SORTED[
        "stackexchange_Title_Answer/S"]


@pytest.mark.parametrize("name, data, message", [
    ("Posts.xml", b"<comments><row/></comments>", "Posts.xml: the root element is <comments>, not <posts>"),
    ("Posts.xml", b"<posts></posts>", "Posts.xml: no post in it"),
    ("Posts.xml", b"", "Posts.xml: there is no XML element in it"),
    ("Posts.xml", POSTS[:200], "nothing was mined: no record passed the rules; .*Posts.xml is cut short"),
    ("Posts.xml", b'{"title": "JSON"}', r"Posts.xml: line 1: not well-formed XML"),
    ("Posts.xml.gz", gzip.compress(POSTS)[:-8] + b"x" * 8, "Posts.xml.gz is damaged: CRC check failed"),
    ("a.7z", b"7z\xbc\xaf\x27\x1c" + b"\0" * 100, r"a\.7z is damaged or cut short"),
    ("a.txt", b"text", r"a\.txt: there is no XML element in it"),
])
def test_wrong_files(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", tmp_path / name)


def test_archives_that_are_refused(tmp_path):
    path = seven_zip(tmp_path / "a.7z", {"Posts.xml": POSTS}, password="secret")
    with pytest.raises(ValueError, match=r"a\.7z is encrypted"):
        run(tmp_path / "out", path)
    path = seven_zip(tmp_path / "b.7z", {"Posts.xml": POSTS}, password="secret", header_encryption=True)
    with pytest.raises(ValueError, match=r"b\.7z is encrypted"):
        run(tmp_path / "out", path)
    path = seven_zip(tmp_path / "c.7z", {"Comments.xml": b"<comments/>"})
    with pytest.raises(ValueError, match=r"c\.7z: no post in it"):
        run(tmp_path / "out", path)
    whole = seven_zip(tmp_path / "d.7z", {"Posts.xml": POSTS}).read_bytes()
    (tmp_path / "d.7z").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=r"d\.7z is damaged or cut short"):
        run(tmp_path / "out", tmp_path / "d.7z")


def test_two_dumps_of_one_site(tmp_path):
    first, second = plain(tmp_path / "1" / "sky"), plain(tmp_path / "2" / "sky")
    with pytest.raises(ValueError, match="two dumps of one site, sky"):
        run(tmp_path / "out", first, second)


def test_names_of_sites(tmp_path):
    assert site_of(tmp_path / "cs.stackexchange.com.7z") == "cs.stackexchange.com"
    assert site_of(tmp_path / "stackoverflow.com-Posts.7z") == "stackoverflow.com"
    assert site_of(tmp_path / "coffee.Posts.xml.gz") == "coffee"
    assert site_of(tmp_path / "ru.stackoverflow.com" / "posts.XML") == "ru.stackoverflow.com"


def naive_pairs(data):
    """The rules of title_body and Title_Answer once more, with other tools and all in memory."""
    rows = xml.etree.ElementTree.fromstring(data)
    text = {each.get("Id"): " ".join(html.unescape(re.sub(
        r"</?(?:p|br|li|ul|ol|pre|blockquote|h\d|hr|div|img|table|tr|td|th|tbody|thead|dl|dt|dd|kbd)\b[^>]*>", " ",
        re.sub(r"</?(?:a|em|strong|b|i|code|s|sub|sup|del|strike)\b[^>]*>", "", each.get("Body", "")))).split())
        for each in rows}
    questions = {each.get("Id"): each for each in rows if each.get("PostTypeId") == "1"
                 and len(each.get("Title")) >= 20 and int(each.get("Score")) >= 0}
    bodies = {key: text[key] for key in questions if 20 <= len(text[key]) <= 4096}
    answers = collections.defaultdict(list)
    for each in rows:
        if each.get("PostTypeId") == "2" and 20 <= len(text[each.get("Id")]) <= 4096:
            answers[each.get("ParentId")].append((-int(each.get("Score")), len(answers[each.get("ParentId")]), each))
    best = {key: min(answers[key])[2] for key in questions if answers[key] and min(answers[key])[0] <= 0}
    return (sorted(questions[key].get("Title").split() + ["->"] + body.split() for key, body in bodies.items()),
            sorted(questions[key].get("Title").split() + ["->"] + text[each.get("Id")].split()
                   for key, each in best.items()))


def test_real_sites(shared_data, tmp_path):
    """The pairs of two real sites beside those of a naive program."""
    folder = shared_data / "raw" / "stackexchange"
    lines = {name: entry["lines"] for name, entry in run(tmp_path / "out", folder)["outputs"].items()}
    with py7zr.SevenZipFile(folder / "beer.stackexchange.com.7z") as archive:
        factory = py7zr.io.BytesIOFactory(1 << 30)
        archive.extract(targets=["Posts.xml"], factory=factory)
        beer = factory.products["Posts.xml"].read()
    coffee = gzip.decompress((folder / "coffee.Posts.xml.gz").read_bytes())
    for site, data in (("beer.stackexchange.com", beer), ("coffee", coffee)):
        for kind, expected in zip(("title_body", "Title_Answer"), naive_pairs(data)):
            found = sorted(first.split() + ["->"] + second.split() for first, second in
                           read_output(tmp_path / "out", f"stackexchange_{kind}/{site}"))
            different = [pair for pair in zip(found, expected) if pair[0] != pair[1]]
            assert len(found) == len(expected) and len(different) <= 0.01 * len(found), (site, kind, different[:2])
    assert lines[DUPLICATES.format("title")] == 32
