"""The Encoder: Encoder.load(MODEL).encode(list of n texts) -> float32 [n, D]."""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from data.tokenizer import TextTokenizer, load_tokenizer
from inference.batching import Call, make_calls
from inference.embedding import require_finite
from model import pooling
from model.config import ModelConfig
from model.files.modules import default_prompt
from model.files.names import flatten
from model.files.weights import load_model, model_fingerprint
from model.parameters import Tree, declare
from sharding.layout import DEVICES, SPLIT, WHOLE, Layout, make_mesh, shardings, split, state_spec

WINDOW = 8192  # texts tokenised at once, while the device works on those before
CALLS_IN_FLIGHT = 3  # dispatched before the first result is fetched
CPU_BATCH_TOKENS = 2048  # activations stay in the processor's cache
DEVICE_BATCH_TOKENS = 32768


class Encoder:
    """A model ready to embed texts on this process's devices."""

    def __init__(
        self,
        config: ModelConfig,
        parameters: Tree,
        tokenizer: TextTokenizer,
        *,
        dtype: str | jnp.dtype = jnp.float32,
        batch_tokens: int = 0,
        devices: Sequence[jax.Device] | None = None,
        layout: Layout | None = None,
    ):
        """The layout of a run says where `parameters` lie already, and all its processes must encode together."""
        if tokenizer.vocab_size > config.encoder.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model's embedding table "
                f"{config.encoder.vocab_size}: they do not belong together"
            )
        layout = layout or Layout(make_mesh(devices or jax.local_devices()))
        mesh = self._mesh = layout.mesh
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self.config = config
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens or (CPU_BATCH_TOKENS if on_cpu else DEVICE_BATCH_TOKENS)
        specs = jax.tree.map(state_spec("parameters", layout), declare(config))
        self._parameters = jax.device_put(parameters, shardings(specs, mesh))
        self._embed = _compiled(config, jnp.dtype(dtype), layout)

    @classmethod
    def load(cls, model: str | os.PathLike, *, max_length: int = 0, **options: Any) -> "Encoder":
        """Reads MODEL (see load_model, also for max_length and errors). Options are those of Encoder."""
        loaded = load_model(model, max_length=max_length)
        return cls(loaded.config, loaded.parameters, load_tokenizer(loaded.tokenizer_folder), **options)

    def fingerprint(self) -> str:
        """Of the model and its tokenizer: see model.files.weights.model_fingerprint."""
        return model_fingerprint(self.config, self._parameters, self.tokenizer)

    def token_counts(self, texts: Sequence[str]) -> np.ndarray:  # [n] int64
        """Tokens of each text that the encoder reads: special ones included, cut at max_length."""
        return np.array([len(tokens) for tokens in self._tokenize(stripped(texts))], np.int64)

    def encode(
        self, texts: Sequence[str], *, prompt_name: str | None = None, progress: bool = False,
        normalize: bool | None = None,
    ) -> np.ndarray:  # [n, D] float32
        """Embeddings of the texts, in order; each distinct text is encoded once.

        Texts are stripped, as in training, and the model's prompt of that name is put before each; None is the model's
        default prompt, if it has one, "" is none. normalize overrides whether the embeddings get unit norm.

        Raises:
          TypeError: texts is one text, or holds something else than texts.
          ValueError: the model has no such prompt, or an embedding is not finite, as with NaN in the weights.
        """
        texts = stripped(texts)
        prompts = {"": "", None: default_prompt(self.config)} | dict(self.config.prompts)
        if prompt_name not in prompts:
            raise ValueError(f"prompt_name={prompt_name!r} is unknown: the model has "
                             f"{', '.join(filter(None, prompts)) or 'no prompts'}")
        prompt = prompts[prompt_name]
        numbers: dict[str, int] = {}
        places = np.array([numbers.setdefault(prompt + text, len(numbers)) for text in texts], np.int64)
        embeddings = np.empty((len(numbers), self.config.embedding_size), np.float32)
        is_finite = np.empty(len(numbers), bool)
        in_flight: collections.deque[tuple[Call, jax.Array]] = collections.deque()
        normalize = self.config.normalize if normalize is None else normalize
        with tqdm(total=len(numbers), desc="embed", unit="text", disable=not progress) as bar:

            def fetch() -> None:
                call, result = in_flight.popleft()
                used = call.text_indices >= 0
                rows, found = call.text_indices[used], np.asarray(result)[used]
                embeddings[rows], is_finite[rows] = found, np.isfinite(found).all(axis=1)
                bar.update(len(rows))

            for call in self._calls(list(numbers)):
                packed = split(call.packed, self._mesh)
                in_flight.append((call, self._embed(self._parameters, packed, normalize=normalize)))
                if len(in_flight) > CALLS_IN_FLIGHT:
                    fetch()
            while in_flight:
                fetch()
        require_finite(is_finite[places], texts, self._why_not_finite)
        return embeddings[places]

    def _why_not_finite(self) -> str:
        """The end of the error about embeddings that are not finite."""
        names = [name for name, leaf in flatten(self._parameters).items() if not jnp.isfinite(leaf).all()]
        return f": the model's weights hold NaN or Inf, in {', '.join(names)}" if names else (
            ": the model's weights are finite, so its numbers overflow")

    def _calls(self, texts: list[str]) -> Iterator[Call]:
        """Tokenises one window of texts in a thread while the calls of the one before are packed and computed."""
        starts = range(0, len(texts), WINDOW)
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            tokenised = thread.map(lambda start: self._tokenize(texts[start : start + WINDOW]), starts)
            yield from make_calls(
                tokenised, self.config.max_length, self.batch_tokens, self._mesh.size, self.tokenizer.pad_id
            )

    def _tokenize(self, texts: list[str]) -> list[np.ndarray]:
        """[prefix] + tokens, truncated + [suffix] of each text."""
        prefix, suffix = np.int32([self.tokenizer.prefix_id]), np.int32([self.tokenizer.suffix_id])
        room = self.config.max_length - 2
        return [np.concatenate([prefix, tokens[:room], suffix]) for tokens in self.tokenizer.encode(texts)]


def stripped(texts: Iterable[str]) -> list[str]:
    """The texts without white space around them.

    Raises TypeError for one text instead of a list and for what is not a str, ValueError for a str that is not Unicode.
    """
    if isinstance(texts, str | bytes):
        raise TypeError(f"expected a list of texts, not one {type(texts).__name__}")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{number}] is {text!r:.80} of type {type(text).__name__}, not a str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"texts[{number}] is not Unicode: {error}") from error
    return [text.strip() for text in texts]


@functools.lru_cache(maxsize=8)
def _compiled(config: ModelConfig, dtype: jnp.dtype, layout: Layout):
    """(parameters, packed [P, R, L], normalize) -> embeddings [P, T, D], a block per device; one program per shape."""
    specs = jax.tree.map(state_spec("parameters", layout), declare(config))
    several_processes = layout.mesh.is_multi_process

    def run(parameters, packed, *, normalize: bool):
        def local(parameters, packed):
            model = dataclasses.replace(config, normalize=normalize)
            embeddings = pooling.embed(parameters, model, packed, dtype=dtype)
            return jax.lax.all_gather(embeddings, DEVICES, tiled=True) if several_processes else embeddings

        # A float32 embedding is one of float32 products: TPUs and GPUs would take fewer bits by default.
        with jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
            return jax.shard_map(  # check_vma: a Pallas kernel does not say over which axes its result varies
                local, mesh=layout.mesh, in_specs=(specs, SPLIT),
                out_specs=WHOLE if several_processes else SPLIT, check_vma=False,
            )(parameters, packed)

    return jax.jit(run, static_argnames="normalize")
