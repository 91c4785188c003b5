"""Wikipedia: introductions of articles, paired with their titles and with those of articles in the same category.

    wikipedia_title_intro/WIKI      [title, introduction]
    wikipedia_redirect_intro/WIKI   [title of a redirect, introduction of the article that it leads to]
    wikipedia_same_category/WIKI    [introduction, introduction] of two articles that share a category

An introduction is what stands before the first heading, as plain text (data/mine/wikitext.py). Disambiguation pages,
and articles whose introduction is shorter than --min_intro, are left out. WIKI is the wiki's own name, such as enwiki.

A category means nothing for its articles, and is left out, if

    hidden        its page has __HIDDENCAT__, or a template that has it: trackers and maintenance
    maintenance   its name has a word of MAINTENANCE (articles, pages, stubs, templates, ...) or the project's name
    date          its name has a year, decade or century, or is about births and deaths: "1990 births", "2005 albums"
    too small     it has fewer than two articles with an introduction
    too large     it has more than --max_category of them: "Living people" says little of two articles in it
    named         its whole name matches --skip_categories: what the wiki's language calls lists, stubs and the like

A redirect to a redirect leads nowhere, as on the wiki itself. Articles of a category that redirects to another one
belong to that one. A category gives each pair of its articles, but no more than --pairs_per_category. They are drawn by
hashes of the titles: the same dump gives the same pairs, and every article comes about equally often. Two articles that
share several categories are a pair in the smallest of them only (of those that are neither hidden nor left out by their
names), so that no pair is mined twice.

wikiextractor's JSON has no categories: it gives titles and introductions only. There the introduction is the first
paragraph after the title.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.mine import reading, work
from data.mine.reading import damage_named, members, objects_of
from data.mine.source import Counts, Source, Unit
from data.mine.wiki_dump import (
    ARTICLE,
    CATEGORY,
    FILE,
    PROJECT,
    Facts,
    Page,
    Site,
    categories_of,
    normal_title,
    pages_of,
    read_facts,
)
from flags import flag

MAINTENANCE = re.compile(
    r"\b(articles?|pages?|stubs?|templates?|redirects?|wikiprojects?|wikidata|webarchive|cs1|disambiguations?|infobox(es)?|"
    r"orphaned|unreferenced|living people|commons (category|link)|year of (birth|death))\b|"
    r"^use (\w+ )*(english|dates)\b", re.IGNORECASE)
DATE = re.compile(
    r"(?<!\d)(1\d{3}|20\d\d)s?(?!\d)|\b\d{1,2}(st|nd|rd|th)[- ]century|\b\d+(s|st|nd|rd|th)?( BC)? "
    r"(births|deaths|(dis)?establishments|BC)\b|^\d+s?$|\b(births|deaths)\b", re.IGNORECASE)
FILES = (r".*\.xml(-p\d+p\d+)?(\.(gz|bz2|xz|zst|7z))?|.*wiki.*\.(7z|jsonl?(\.(gz|bz2|xz|zst))?)|"
         r"(.*_)?wiki_\d+(\.(gz|bz2|xz|zst))?")
_EXTRACTED = re.compile(r"(.*_)?wiki_\d+(\.\w+)?|.*\.jsonl?(\.\w+)?", re.IGNORECASE)
BATCH_CHARACTERS = 1 << 18  # of wikitext that a process parses at a time


@dataclasses.dataclass(frozen=True)
class WikipediaSettings:
    min_intro: int = flag(100, "shortest introduction, characters", minimum=1)
    max_intro: int = flag(2000, "longer introductions are cut behind a sentence, characters", minimum=20)
    max_category: int = flag(500, "largest category, articles; larger ones mean too little", minimum=2)
    pairs_per_category: int = flag(100, "most pairs of introductions that a category gives", minimum=1)
    skip_categories: str = flag("", "regular expression of names of categories that mean nothing in this wiki, such as "
                                    "'Saroksti|Nadabeigti .*'; empty: none but those that the rules leave out")


class Article(NamedTuple):
    """An article before its introduction is read."""

    site: Site
    page: Page
    lead: str  # wikitext
    categories: tuple[str, ...]


def units(paths: Sequence[Path]) -> list[Unit]:
    """The dumps of one wiki together, as templates and articles may be in different files; other files one by one."""
    wikis: dict[str, list[Path]] = {}
    for path in paths:
        wikis.setdefault(str(path) if _EXTRACTED.fullmatch(path.name) else wiki_of(path), []).append(path)
    return [tuple(files) for files in wikis.values()]


def wiki_of(path: Path) -> str:
    """"enwiki" of enwiki-20240101-pages-articles1.xml-p1p41242.bz2."""
    return re.match(r"[^-.]*", path.name)[0] or "wiki"


def scatter(unit: Unit, settings: WikipediaSettings, counts: Counts) -> Iterator[tuple[str, Any]]:
    """(key, record) of each article and redirect, by title, and of each article, by category."""
    skipped = _compiled(settings.skip_categories)
    if _is_json(unit[0], counts):
        yield from _extracted_records(unit[0], settings, counts)
        return
    facts = read_facts(unit, wiki_of(unit[0]))
    batches = _batches(_articles(unit, facts, counts, direct := []))
    found = False
    for batch, texts in work.map_in_order(_introductions, batches, reading.helpers):
        yield from direct
        direct.clear()
        for article, text in zip(batch, texts):
            found = True
            yield from _article_records(article, text, facts, skipped, settings, counts)
    yield from direct
    if not found and not counts.notes:
        raise ValueError(f"{', '.join(map(str, unit))}: no article in it: a dump of pages-articles has pages with text")


def _compiled(expression: str) -> re.Pattern | None:
    try:
        return re.compile(expression, re.IGNORECASE) if expression else None
    except re.error as error:
        raise ValueError(f"--skip_categories={expression!r} is no regular expression: {error}") from None


def _is_json(path: Path, counts: Counts) -> bool:
    with damage_named(path, counts):
        for _, chunks in members(path):
            return next(chunks, b"").removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
    return False


def _articles(
    unit: Unit, facts: Facts, counts: Counts, direct: list[tuple[str, Any]]
) -> Iterator[Article]:
    """The articles of a wiki; the records of its redirects are put into `direct`."""
    from data.mine.wikitext import lead_of

    for site, page in pages_of(unit, wiki_of(unit[0]), counts):
        if page.namespace != ARTICLE:
            continue
        if page.redirect:
            target, _, section = page.redirect.partition("#")
            if section:
                counts["redirect to a section"] += 1
            else:
                direct.append((f"{site.name}/page/{normal_title(target)}", {"kind": "redirect", "title": page.title}))
        elif facts.is_disambiguation(page.title, page.text):
            counts["disambiguation page"] += 1
        else:
            names = (facts.category_redirects.get(name, name) for name in categories_of(page.text, site))
            yield Article(site, page._replace(text=""), lead_of(page.text), tuple(dict.fromkeys(names)))


def _batches(articles: Iterator[Article]) -> Iterator[list[Article]]:
    batch, size = [], 0
    for article in articles:
        batch.append(article)
        size += len(article.lead)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _introductions(batch: list[Article]) -> list[str]:
    from data.mine.wikitext import plain_text

    return [plain_text(article.lead, article.site.names(FILE, CATEGORY)) for article in batch]


def _article_records(
    article: Article, text: str, facts: Facts, skipped: re.Pattern | None, settings: WikipediaSettings, counts: Counts
) -> Iterator[tuple[str, Any]]:
    from data.mine.wikitext import cut_at_sentence

    site, page = article.site, article.page
    if len(text) < settings.min_intro:
        counts["article with an introduction shorter than --min_intro"] += 1
        return
    record = {"kind": "article", "wiki": site.name, "title": page.title,
              "intro": cut_at_sentence(text, settings.max_intro),
              "by": {"wiki": site.name, "page": page.title, "id": page.number}}
    yield f"{site.name}/page/{page.title}", record
    kept = []
    for name in article.categories:
        if reason := "that is hidden" if facts.is_hidden(name) else _name_rule(name, site, skipped):
            counts[f"membership of a category {reason}"] += 1
        else:
            kept.append(name)
    sizes = {name: facts.size(name) for name in kept}
    for name in kept:
        yield f"{site.name}/category/{name}", record | {"name": name, "categories": sizes}


def _name_rule(name: str, site: Site, skipped: re.Pattern | None) -> str:
    """Why a category means nothing by its name; "" if it may mean something."""
    if MAINTENANCE.search(name) or any(project in name.lower() for project in site.names(PROJECT)):
        return "of maintenance, by its name"
    if DATE.search(name):
        return "of a date"
    return "that --skip_categories names" if skipped and skipped.fullmatch(name) else ""


def _extracted_records(path: Path, settings: WikipediaSettings, counts: Counts) -> Iterator[tuple[str, Any]]:
    """The articles of a file of wikiextractor's JSON."""
    from data.mine.wikitext import cut_at_sentence

    for value in objects_of(path, counts, keys=("title", "text")):
        title, text = value["title"], value["text"]
        if not isinstance(title, str) or not isinstance(text, str):
            counts["article whose title or text is not a string"] += 1
            continue
        host = re.match(r"https?://([\w-]+)\.", str(value.get("url", "")))
        wiki = f"{host[1]}wiki" if host else "wiki"
        first, _, rest = text.strip().partition("\n")
        intro = (rest if first.strip() == title.strip() else text).strip().split("\n\n")[0].strip()
        if len(intro) < settings.min_intro:
            counts["article with an introduction shorter than --min_intro"] += 1
            continue
        yield f"{wiki}/page/{title}", {
            "kind": "article", "wiki": wiki, "title": title, "intro": cut_at_sentence(intro, settings.max_intro),
            "by": {"wiki": wiki, "page": title, "id": str(value.get("id", ""))}}


def join(records: list[dict], settings: WikipediaSettings, counts: Counts) -> Iterator[tuple]:
    """The pairs of an article and its redirects, or of a category."""
    if "name" in records[0]:
        yield from _category_pairs(records, settings, counts)
        return
    articles = [record for record in records if record["kind"] == "article"]
    redirects = [record["title"] for record in records if record["kind"] == "redirect"]
    if not articles:
        counts["redirect to a page that was not mined"] += len(redirects)
        return
    counts["article that is in the dump twice"] += len(articles) - 1
    article = articles[-1]
    wiki, title, intro = article["wiki"], article["title"], article["intro"]
    yield f"wikipedia_title_intro/{wiki}", [title, intro], [article["by"]]
    seen = {_letters(title)}
    for name in dict.fromkeys(redirects):
        if _letters(name) in seen:
            counts["redirect that differs in case, accents or signs only"] += 1
        else:
            seen.add(_letters(name))
            yield f"wikipedia_redirect_intro/{wiki}", [name, intro], [article["by"]]


def _letters(title: str) -> str:
    """A title without what a reader would not see as another name."""
    import unicodedata

    split = unicodedata.normalize("NFKD", title.casefold())
    return "".join(character for character in split if character.isalnum())


def _category_pairs(records: list[dict], settings: WikipediaSettings, counts: Counts) -> Iterator[tuple]:
    name, wiki = records[0]["name"], records[0]["wiki"]
    articles = {record["title"]: record for record in records}
    if len(articles) > settings.max_category:
        counts["category of more articles than --max_category"] += 1
    elif len(articles) < 2:
        counts["category of fewer than two articles"] += 1
    else:
        ordered = sorted(articles.values(), key=lambda article: _hash(f"{name}\n{article['title']}"))
        for first, second in _drawn(ordered, name, settings.pairs_per_category, counts):
            yield f"wikipedia_same_category/{wiki}", [first["intro"], second["intro"]], [first["by"], second["by"]]


def _drawn(articles: list[dict], name: str, most: int, counts: Counts) -> Iterator[tuple[dict, dict]]:
    """Pairs of articles around a ring: each with the next one, then with the one after that, and so on."""
    size, drawn = len(articles), 0
    for step in range(1, size // 2 + 1):
        for place in range(size if 2 * step != size else step):
            if drawn == most:
                counts["pair beyond --pairs_per_category"] += size * (size - 1) // 2 - (step - 1) * size - place
                return
            first, second = articles[place], articles[(place + step) % size]
            if _home(first, second) != name:
                counts["pair of articles that share another category, too"] += 1
            elif first["intro"] == second["intro"]:
                counts["pair of equal introductions"] += 1
            else:
                drawn += 1
                yield first, second


def _home(first: dict, second: dict) -> str:
    """The category in which two articles are a pair, of those that they share."""
    sizes = first["categories"]
    return min(sizes.keys() & second["categories"].keys(), key=lambda name: (sizes[name], _hash(name)))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()


WIKIPEDIA = Source(
    name="wikipedia",
    expects="dump of a wiki's pages: WIKI-DATE-pages-articles.xml.bz2 (multistream, in parts, .7z or unpacked), or "
            "wikiextractor's JSON (wiki_00, ...)",
    licence="CC BY-SA 4.0 (before June 2023: 3.0) and GFDL: name the article, link to it, and keep the licence. "
            "NAME.attribution.gz has wiki, title and page id, one line per line of NAME.jsonl.gz",
    settings=WikipediaSettings, scatter=scatter, join=join, files=FILES, units=units)
