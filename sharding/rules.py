"""Which mesh axis each logical axis of an array is split over: one table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AxisRules:
    """Logical axis -> mesh axis; None: every device holds all of it. Parameters are replicated, the batch is split."""

    batch: str | None = "data"
    layers: str | None = None
    vocabulary: str | None = None
    positions: str | None = None
    types: str | None = None
    hidden: str | None = None
    projections: str | None = None  # query, key, value
    heads: str | None = None  # all heads side by side
    intermediate: str | None = None
    embedding: str | None = None  # features of the dense heads
