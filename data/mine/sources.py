"""Every source that `main.py mine` knows. Heavy libraries are imported when a source's function runs."""

from data.mine.source import Source

SOURCES: list[Source] = [
]
