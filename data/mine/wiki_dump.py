"""Dumps of a MediaWiki: pages, the wiki's own names of its namespaces, and what its templates mean.

`read_facts` goes through the dump once before it is mined, for what a page's text does not say by itself:

    templates of disambiguation pages    those whose text has __DISAMBIG__, those that MediaWiki:Disambiguationspage
                                         lists, and templates that use one or redirect to one
    hidden categories                    those whose page has __HIDDENCAT__, or uses a template that has it
    redirects of categories              pages that redirect, and English Wikipedia's {{Category redirect}}
    sizes of categories                  how many articles each has, about (a count-min sketch: never too few)

So no list of names is needed for each language. If a dump has no template pages, the names that the large wikis give
these templates are known (`DISAMBIGUATION`). Memory: 64 MB for the sizes, and 16 bytes for each use of a template by a
template or a category page, some 250 MB for English Wikipedia.
"""

import array
import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from data.mine.reading import damage_named, members
from data.mine.source import Counts, Unit
from data.mine.xml_reading import elements

ARTICLE, PROJECT, FILE, MEDIAWIKI, TEMPLATE, CATEGORY = "0", "4", "6", "8", "10", "14"  # namespaces
ENGLISH_NAMES = {"-2": "media", PROJECT: "wikipedia", FILE: "file", MEDIAWIKI: "mediawiki", TEMPLATE: "template",
                 CATEGORY: "category"}  # every wiki takes these too, but for the project's
SIZE_CELLS = 1 << 24
USES_FOLLOWED = 3  # from a template to one that it uses, and so on
DISAMBIGUATION = re.compile(
    r"(?!.*(needed|link)).*disambig.*|dab|hndis|geodis|homonymie|begriffsklärung|desambiguaci[oó]n|desambiguação|"
    r"disambigua|doorverwijspagina|ujednoznacznienie|неоднозначность|многозначность|багатозначність|förgrening|"
    r"flertydig|flertydig side|täsmennyssivu|rozcestník|egyért|anlam ayrımı|"
    r"曖昧さ回避|aimai|消歧义|消歧義|동음이의|توضيح|ابهام‌زدایی|פירושונים", re.IGNORECASE)
HIDDEN = re.compile(r"(hidden|tracking|maintenance|wikipedia) category", re.IGNORECASE)
# Bounds on repeats, as no title is longer: a page of spaces would take for ever without them.
_USE = re.compile(r"\{\{\s{0,9}([^{}|<>\[\]\n#:]{1,255}?)\s{0,9}(?=[|}\n])")
_NOT_INCLUDED = re.compile(r"<noinclude>.*?(?:</noinclude>|\Z)|<!--.*?(?:-->|\Z)", re.DOTALL | re.IGNORECASE)
_NOT_SHOWN = re.compile(r"<!--.*?(?:-->|\Z)|<nowiki>.*?(?:</nowiki>|\Z)", re.DOTALL | re.IGNORECASE)
_SOFT_REDIRECT = re.compile(
    r"\{\{\s*(?:category ?redirect|catr|seecat|cat-?redirect)\s*\|\s*(?:1\s*=)?\s*:?([^|}\n]+)", re.IGNORECASE)
_LINK = re.compile(r"\[\[\s*:?([^\[\]|#\n]+)")
_OLD_REDIRECT = re.compile(r"\s*#[^\s\[]{1,99}\s{0,9}:?\s{0,9}\[\[([^\[\]|\n]+)")


class Page(NamedTuple):
    namespace: str  # its number
    title: str  # without the namespace
    number: str  # page id
    redirect: str | None  # full title of the page that it redirects to
    text: str  # wikitext of the last revision


class Site(NamedTuple):
    """The names of a wiki."""

    name: str  # "ltgwiki"
    namespaces: dict[str, frozenset[str]]  # number -> its names in lower case, English included
    known: bool  # the dump says so; else the names are English

    def names(self, *numbers: str) -> frozenset[str]:
        return frozenset().union(*(self.namespaces.get(number, frozenset()) for number in numbers))


class Facts(NamedTuple):
    disambiguation: frozenset[int]  # hashes of templates
    hidden: frozenset[int]  # hashes of templates and categories
    category_redirects: dict[str, str]
    sizes: np.ndarray  # [2, SIZE_CELLS] uint16

    def is_disambiguation(self, title: str, text: str) -> bool:
        """Whether a page with this title and text only tells other pages apart."""
        return title.endswith("(disambiguation)") or "__DISAMBIG__" in text or any(
            _hash(name) in self.disambiguation or DISAMBIGUATION.fullmatch(name) for name in templates_of(text))

    def size(self, category: str) -> int:
        """About how many articles a category has."""
        return int(min(self.sizes[row, cell] for row, cell in enumerate(_cells(category))))

    def is_hidden(self, category: str) -> bool:
        return _hash(f"{CATEGORY}:{category}") in self.hidden


def normal_title(title: str) -> str:
    """A title as the wiki writes it: spaces for underscores, the first letter in upper case."""
    title = " ".join(title.replace("_", " ").split())
    return title[:1].upper() + title[1:]


def templates_of(text: str) -> set[str]:
    """The names of the templates that a text uses."""
    return {normal_title(name) for name in _USE.findall(text)}


def site_without_info(name: str) -> Site:
    return Site(name, {number: frozenset((own,)) for number, own in ENGLISH_NAMES.items()} | {
        FILE: frozenset(("file", "image"))}, False)


def pages_of(unit: Unit, name: str, counts: Counts) -> Iterator[tuple[Site, Page]]:
    """(the names of the wiki, page) of the dumps of one wiki, in order; `name` is the wiki's if no dump says it.

    Notes a dump without names of namespaces, and one that is cut short.
    """
    site = site_without_info(name)
    for path in unit:
        warned = False
        with damage_named(path, counts):
            for member, chunks in members(path):
                where: Path | str = path if path.name.startswith(member) else f"{path}/{member}"
                for element in elements(chunks, where, ("siteinfo", "page"), counts, root="mediawiki"):
                    if element.tag == "siteinfo":
                        site = _site(element, site)
                        continue
                    if not site.known and not warned:
                        warned = True
                        counts.notes.append(f"{path} has no siteinfo with the names of its namespaces: the English "
                                            "ones are taken, and categories under other names are not seen")
                    if (page := _page(element, site, counts)) is not None:
                        yield site, page


def _site(element: Element, before: Site) -> Site:
    names = {number: set(own) for number, own in site_without_info("").namespaces.items()}
    found = element.findall("namespaces/namespace")
    for each in found:
        if each.text:
            names.setdefault(each.get("key", ""), set()).add(each.text.strip().lower().replace("_", " "))
    database = re.sub(r"[^\w-]", "", element.findtext("dbname") or "") or before.name
    return Site(database, {number: frozenset(own) for number, own in names.items()}, bool(found))


def _page(element: Element, site: Site, counts: Counts) -> Page | None:
    revisions = element.findall("revision")
    title, namespace = element.findtext("title") or "", element.findtext("ns")
    prefix, colon, rest = title.partition(":")
    if namespace is None:  # dumps before 2012
        namespace = next((number for number, names in site.namespaces.items()
                          if colon and prefix.strip().lower() in names), ARTICLE)
    if not title or not revisions:
        counts["page without a title or a text"] += 1
        return None
    text = revisions[-1].findtext("text") or ""
    target = element.find("redirect")
    redirect = target.get("title") if target is not None else None
    if (target is not None and redirect is None) or (target is None and text.lstrip().startswith("#")):
        found = _OLD_REDIRECT.match(text)
        redirect = found[1] if found else redirect
    if namespace == ARTICLE and (revisions[-1].findtext("model") or "wikitext") != "wikitext":
        counts["page that is not wikitext"] += 1
        return None
    own = title if namespace == ARTICLE else rest
    return Page(namespace, normal_title(own), element.findtext("id") or "", redirect, text)


def read_facts(unit: Unit, name: str) -> Facts:
    """Reads the dumps of one wiki for the facts of its templates and categories."""
    marked: dict[str, set[int]] = {"__DISAMBIG__": set(), "__HIDDENCAT__": set()}
    users, used = array.array("Q"), array.array("Q")  # hashes of a template, and of one that it uses
    redirects: dict[str, str] = {}
    sizes = np.zeros((2, SIZE_CELLS), np.uint16)
    for site, page in pages_of(unit, name, Counts()):
        if page.namespace == CATEGORY and (target := page.redirect or _soft_redirect(page.text)):
            redirects[page.title] = _without_prefix(target, site, CATEGORY)
        elif page.namespace in (TEMPLATE, CATEGORY):
            is_template = page.namespace == TEMPLATE
            own = _hash(page.title if is_template else f"{CATEGORY}:{page.title}")
            text = _NOT_INCLUDED.sub("", page.text) if is_template else page.text
            targets = {_without_prefix(page.redirect, site, TEMPLATE)} if page.redirect else templates_of(text)
            users.extend([own] * len(targets))
            used.extend(map(_hash, targets))
            for word, names in marked.items():
                if word in text:
                    names.add(own)
            if not is_template and any(map(HIDDEN.fullmatch, targets)):
                marked["__HIDDENCAT__"].add(own)
        elif page.namespace == ARTICLE and not page.redirect:
            for category in categories_of(page.text, site):
                for row, cell in enumerate(_cells(category)):
                    sizes[row, cell] = min(int(sizes[row, cell]) + 1, 65535)
        elif page.namespace == MEDIAWIKI and page.title == "Disambiguationspage":
            marked["__DISAMBIG__"].update(
                _hash(_without_prefix(link, site, TEMPLATE)) for link in _LINK.findall(page.text))
    for names in marked.values():
        for _ in range(USES_FOLLOWED):
            names.update([user for user, target in zip(users, used) if target in names])
    return Facts(frozenset(marked["__DISAMBIG__"]), frozenset(marked["__HIDDENCAT__"]), redirects, sizes)


def _soft_redirect(text: str) -> str | None:
    found = _SOFT_REDIRECT.search(text)
    return found[1] if found else None


def _without_prefix(title: str, site: Site, namespace: str) -> str:
    prefix, colon, rest = title.strip().lstrip(":").partition(":")
    return normal_title(rest if colon and prefix.strip().lower() in site.names(namespace) else title)


@functools.cache
def _category_link(names: frozenset[str]) -> re.Pattern:
    alternatives = "|".join(re.escape(name).replace(r"\ ", "[ _]") for name in sorted(names))
    return re.compile(rf"\[\[[ _]{{0,9}}(?:{alternatives})[ _]{{0,9}}:([^\[\]|\n]{{1,255}}?)(?:\||\]\])", re.IGNORECASE)


def categories_of(text: str, site: Site) -> list[str]:
    """The names of the categories that a page puts itself into."""
    found = _category_link(site.names(CATEGORY)).findall(_NOT_SHOWN.sub("", text))
    return list(dict.fromkeys(normal_title(name) for name in found if name.strip(" _")))


def _cells(category: str) -> tuple[int, int]:
    value = _hash(category)
    return value % SIZE_CELLS, (value >> 32) % SIZE_CELLS


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="replace"), digest_size=8).digest(), "little")
