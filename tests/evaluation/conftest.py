"""An encoder whose embeddings one can see: a text is an angle in degrees, its embedding that direction."""

import sys
import types

import numpy as np
import pytest


class AngleEncoder:
    """Stands for inference.encoder.Encoder. A model's name is the length of its embeddings: "model-3"."""

    def __init__(self, length: float):
        self.length = length
        self.config = types.SimpleNamespace(prompts=(), default_prompt_name="", embedding_size=2, normalize=True)
        self.encoded: list[str] = []

    @classmethod
    def load(cls, model, dtype="float32"):
        return cls(float(model.rpartition("-")[2]))

    def encode(self, texts, *, prompt_name=None, normalize=True, progress=False):
        """The angle is the last word of a text, "de 30" or "30"."""
        self.encoded += texts
        angles = np.radians([float(text.split()[-1]) for text in texts])
        return (1.0 if normalize else self.length) * np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def fingerprint(self):
        return f"angles-{self.length}"

    def token_counts(self, texts):
        return np.array([len(text) for text in texts])


@pytest.fixture
def angle_encoder(monkeypatch):
    """Puts AngleEncoder where main.py evaluate looks for the encoder; the class, so that a test may change it."""

    class Encoder(AngleEncoder):
        pass

    import inference.encoder

    monkeypatch.setattr(inference.encoder, "Encoder", Encoder)
    monkeypatch.setitem(sys.modules, "inference.encoder", inference.encoder)
    return Encoder
