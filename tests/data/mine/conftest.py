"""Fixtures of the miners' tests."""

import os

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Hundreds of small outputs; none of these tests cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
