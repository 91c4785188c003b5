"""Every source that `main.py mine` knows. Heavy libraries are imported when a source's function runs."""

from data.mine.published.sources import PUBLISHED
from data.mine.reddit import REDDIT
from data.mine.source import Source
from data.mine.stackexchange import STACKEXCHANGE
from data.mine.wikipedia import WIKIPEDIA

SOURCES: list[Source] = [
    STACKEXCHANGE,
    WIKIPEDIA,
    REDDIT,
    *PUBLISHED,
]
