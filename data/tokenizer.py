"""Text -> token ids, through the `tokenizers` library, from a model's own files.

TextTokenizer.encode is the one place where a text is made ready for its tokens: prepare, teach, training and inference
all call it. Lower-casing (do_lower_case of sentence-transformers' Transformer module included) is part of the
tokenizer, and so of its fingerprint. Tokens come without special tokens and untruncated; a row of a text is [prefix] +
tokens[:max_length - 2] + [suffix], which is what Hugging Face's post-processors make of a single text in BERT
([CLS] .. [SEP]) and RoBERTa (<s> .. </s>).

A folder is read as transformers 5 reads it. Its settings are tokenizer_config.json, special_tokens_map.json,
added_tokens.json and the model_type of config.json. The classes BertTokenizer, DistilBertTokenizer, MPNetTokenizer and
RobertaTokenizer take only the vocabulary from tokenizer.json and the rest from these settings; every other class takes
tokenizer.json as it is.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from data.files import hub_snapshot, model_folder, read_json, write_json

# Characters of a text that are tokenised. No model here reads more than 512 tokens, so the cap changes nothing that is
# trained on, and a text of 1 MB costs what one of 100 kB does.
MAX_TEXT_CHARACTERS = 100_000

# Files that decide, with tokenizer.json, which tokens a text becomes.
COMPANION_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
    "sentencepiece.bpe.model",
    # of sentence-transformers' Transformer module
    *(f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "xlm-roberta")),
)
_HUB_PATTERNS = ["tokenizer.json", *COMPANION_FILES, "modules.json", "*/*.json", "*/vocab.txt", "*/merges.txt",
                 "config.json"]
_CLASSES = {"bert": "BertTokenizer", "distilbert": "BertTokenizer", "electra": "BertTokenizer",
            "mpnet": "MPNetTokenizer", "roberta": "RobertaTokenizer"}  # of a model_type, if no setting names one
_BERT_NAMES = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
               "mask_token": "[MASK]"}
_ROBERTA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>",
                  "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"}
_NAMES = {  # the special tokens of the classes that are built from a vocabulary, if no setting renames them
    "BertTokenizer": _BERT_NAMES,
    "DistilBertTokenizer": _BERT_NAMES,
    "MPNetTokenizer": _ROBERTA_NAMES | {"unk_token": "[UNK]"},
    "RobertaTokenizer": _ROBERTA_NAMES,
}
_ORDER = tuple(_ROBERTA_NAMES)  # in which new special tokens get their ids


class TextTokenizer:
    """A `tokenizers.Tokenizer` with what training needs of it; made by `load_tokenizer`.

    names says which tokens are special, as {"cls_token": "[CLS]", ...}; BERT's and RoBERTa's are found without it.
    """

    def __init__(self, tokenizer: Tokenizer, names: Mapping[str, str] | None = None, place: str | os.PathLike = ""):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._place = place  # for messages
        self._names = {key: name for key, name in (names or {}).items() if tokenizer.token_to_id(name) is not None}
        for name_of in (_BERT_NAMES, _ROBERTA_NAMES):
            for key, name in name_of.items():
                if key in _BERT_NAMES and tokenizer.token_to_id(name) is not None:
                    self._names.setdefault(key, name)
        self.vocab_size: int = max(tokenizer.get_vocab().values()) + 1  # one more than the largest id
        self.prefix_id, self.suffix_id = self._special_pair()
        self.pad_id: int = self._special_id("pad_token")

    def _special_pair(self) -> tuple[int, int]:
        """The two tokens that the post-processor puts around a text; by name if there is no post-processor."""
        around_nothing = self._tokenizer.encode("").ids
        if len(around_nothing) == 2:
            return around_nothing[0], around_nothing[1]
        if around_nothing:
            raise ValueError(
                f"{self._place}: the tokenizer puts {len(around_nothing)} special tokens around a text; "
                "a prefix and a suffix are supported"
            )
        return self._special_id("cls_token"), self._special_id("sep_token")

    def _special_id(self, key: str) -> int:
        if key not in self._names:
            raise ValueError(
                f"{self._place}: the vocabulary has no {_BERT_NAMES[key]} and no {_ROBERTA_NAMES[key]}: if its {key} "
                "has another name, give it in tokenizer_config.json"
            )
        return self._tokenizer.token_to_id(self._names[key])

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The token ids of each text, int32, without special tokens; of its first 100,000 characters."""
        capped = [text[:MAX_TEXT_CHARACTERS] for text in texts]
        encodings = self._tokenizer.encode_batch_fast(capped, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, tokens: np.ndarray) -> str:
        """The text of token ids [n], as near to the original as the tokenizer keeps it."""
        return self._tokenizer.decode(tokens.tolist())

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the parts of the canonical tokenizer.json that decide which tokens a text becomes."""
        whole = json.loads(self._tokenizer.to_str())
        parts = {key: whole[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_folder(self, folder: str | Path, **settings: Any) -> None:
        """Writes tokenizer.json and a tokenizer_config.json that make transformers and us build this tokenizer.

        settings are further ones, such as model_max_length. They and the names of the special tokens are all that
        PreTrainedTokenizerFast needs: it takes tokenizer.json as it is.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(os.fspath(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json",
                   {"tokenizer_class": "PreTrainedTokenizerFast", **self._names, **settings})


def load_tokenizer(source: str | Path) -> TextTokenizer:
    """Reads a tokenizer from a folder (ours, Hugging Face's, sentence-transformers'), a tokenizer.json or a hub id.

    A folder has tokenizer.json, or vocab.txt (BERT), or vocab.json and merges.txt (RoBERTa). XLM-RoBERTa's
    sentencepiece model needs a tokenizer.json beside it. A tokenizer.json is read with the settings beside it.
    """
    path = Path(source)
    folder = path.parent if path.is_file() else _tokenizer_folder(path if path.is_dir() else _download(str(source)))
    file = path if path.is_file() else folder / "tokenizer.json"
    settings = _read_settings(folder)
    whole = _read_tokenizer_json(file) if file.exists() else None
    kind = _kind(folder, whole, settings)
    names = _special_tokens(kind, settings)
    tokenizer = _from_vocabulary(folder, whole, kind, settings, names) if kind else whole
    _add_tokens(tokenizer, _listed_tokens(folder, whole, settings, names), names, settings)
    if kind:
        _put_around(tokenizer, kind, names, settings, folder)
    if sentence_settings(folder).get("do_lower_case") and not _has_lowercase(tokenizer.normalizer):
        # First of all, as sentence-transformers does it; added tokens, such as [MASK], are found before.
        after = tokenizer.normalizer
        after = list(after) if isinstance(after, normalizers.Sequence) else [after] * (after is not None)
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *after])
    return TextTokenizer(tokenizer, {key: token.content for key, token in names.items()}, folder)


def sentence_settings(folder: Path) -> dict[str, Any]:
    """The settings of sentence-transformers' Transformer module (sentence_bert_config.json, or named otherwise)."""
    paths = [folder / name for name in COMPANION_FILES if name.startswith("sentence_")]
    found = next((path for path in paths if path.exists()), None)
    return read_json(found) if found else {}


def _has_lowercase(normalizer: normalizers.Normalizer | None) -> bool:
    """Whether a Lowercase is among a tokenizer's normalizers, as sentence-transformers looks for it."""
    parts = list(normalizer) if isinstance(normalizer, normalizers.Sequence) else [normalizer]
    return any(isinstance(part, normalizers.Lowercase) for part in parts)


def _download(name: str) -> Path:
    if name.startswith((".", "/")) or name.count("/") > 1:
        raise ValueError(f"no tokenizer at {name}: there is no such folder or file, and it is no hub id")
    return hub_snapshot(name, _HUB_PATTERNS)


def _tokenizer_folder(folder: Path) -> Path:
    """The folder itself, or where a sentence-transformers folder or a WORKDIR of a training run keeps it."""
    if any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        return folder
    folder = model_folder(folder)
    if (folder / "modules.json").exists():
        return folder / read_json(folder / "modules.json")[0]["path"]
    return folder


def _read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; special_tokens_map.json goes before it, unless it lists the added tokens itself."""
    settings = _read_if_there(folder / "tokenizer_config.json")
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")  # its name in transformers 5
    if "added_tokens_decoder" not in settings:
        renamed = _read_if_there(folder / "special_tokens_map.json")
        settings |= {key: value | {"special": True} if isinstance(value, dict) else value
                     for key, value in renamed.items()}
    return settings


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _kind(folder: Path, whole: Tokenizer | None, settings: dict[str, Any]) -> str:
    """The class to build from a vocabulary, without "Fast"; "" if tokenizer.json is taken as it is."""
    config, ours = _read_if_there(folder / "config.json"), _read_if_there(folder / "allpairs.json")
    family = config.get("model_type") or (ours["model"]["encoder"]["family"] if ours else "")
    name = settings.get("tokenizer_class") or config.get("tokenizer_class") or _CLASSES.get(family, "")
    name = name.removesuffix("Fast")
    if whole is not None:
        model = models.BPE if name == "RobertaTokenizer" else models.WordPiece
        return name if name in _NAMES and isinstance(whole.model, model) else ""
    if (folder / "vocab.txt").exists():
        return name if name in _NAMES and name != "RobertaTokenizer" else "BertTokenizer"
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return "RobertaTokenizer"
    advice = "a tokenizer.json, a vocab.txt (BERT), or a vocab.json and a merges.txt (RoBERTa) is needed"
    if (folder / "sentencepiece.bpe.model").exists():
        advice = ("a sentencepiece model is not read: write its tokenizer.json with "
                  "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)")
    raise ValueError(f"no tokenizer in {folder}: {advice}")


def _read_tokenizer_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is no tokenizer.json that the tokenizers library reads: {error}") from error


def _added_token(value: str | dict[str, Any]) -> AddedToken:
    """A token as the settings write it: its content, or an object with its content and how it is found in a text."""
    if isinstance(value, str):
        return AddedToken(value, special=True)
    fields = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(**{field: value[field] for field in fields if field in value})


def _special_tokens(kind: str, settings: dict[str, Any]) -> dict[str, AddedToken]:
    """{"cls_token": ..., ...}: those of the class, and what the settings say instead."""
    values = _NAMES.get(kind, {}) | {key: settings[key] for key in _ORDER if key in settings}
    return {key: _added_token(values[key]) for key in _ORDER if values.get(key)}


def _from_vocabulary(
    folder: Path, whole: Tokenizer | None, kind: str, settings: dict[str, Any], names: dict[str, AddedToken]
) -> Tokenizer:
    """The pipeline of a class around the vocabulary of tokenizer.json, or else of the files that came before it."""
    if kind == "RobertaTokenizer":
        if whole is None:
            model = models.BPE.from_file(os.fspath(folder / "vocab.json"), os.fspath(folder / "merges.txt"))
        else:
            content = json.loads(whole.to_str())["model"]
            model = models.BPE(content["vocab"], [tuple(pair) for pair in content["merges"]])
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space", False))
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer
    if whole is None:  # one token per line; its line number is its id
        vocabulary = models.WordPiece.read_file(os.fspath(folder / "vocab.txt"))
    else:
        vocabulary = whole.get_vocab(with_added_tokens=False)
    unknown = names["unk_token"].content
    return _bert_pipeline(models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100), settings)


def _bert_pipeline(model: models.WordPiece, settings: dict[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"), lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def bert_tokenizer(model: models.WordPiece) -> Tokenizer:
    """The lower-casing pipeline of BERT around a WordPiece model that has BERT's special tokens."""
    tokenizer, names = _bert_pipeline(model, {}), _special_tokens("BertTokenizer", {})
    _add_tokens(tokenizer, {}, names, {})
    _put_around(tokenizer, "BertTokenizer", names, {}, "the WordPiece model")
    return tokenizer


def _listed_tokens(
    folder: Path, whole: Tokenizer | None, settings: dict[str, Any], names: dict[str, AddedToken]
) -> dict[int, AddedToken]:
    """The added tokens that the files list, by id."""
    if "added_tokens_decoder" in settings:
        return {int(number): _added_token(value) for number, value in settings["added_tokens_decoder"].items()}
    # As in transformers, those that only special_tokens_map.json calls additional are found after lower-casing.
    extra = _extra_tokens({"extra_special_tokens": settings.get("extra_special_tokens")})
    listed, special = {}, {token.content for token in [*names.values(), *extra]}
    for content, number in _read_if_there(folder / "added_tokens.json").items():
        listed[number] = AddedToken(content, normalized=content not in special, special=content in special)
    return listed | (whole.get_added_tokens_decoder() if whole else {})


def _extra_tokens(settings: dict[str, Any]) -> list[AddedToken]:
    """Special tokens that have no role."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return [_added_token(value) for value in (extra.values() if isinstance(extra, dict) else extra)]


def _add_tokens(
    tokenizer: Tokenizer, listed: dict[int, AddedToken], names: dict[str, AddedToken], settings: dict[str, Any]
) -> None:
    """Adds the tokens that are found whole in a text; one that the vocabulary lacks gets the next id."""
    tokens = {listed[number].content: listed[number] for number in sorted(listed)}
    known = tokens.keys() | {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    # A name that only the class gives is not added to a vocabulary without it: the model has no embedding for it.
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    wanted = [token for key, token in names.items() if key in settings or token.content in vocabulary]
    for token in [*wanted, *_extra_tokens(settings)]:
        if token.content not in known:
            tokens.setdefault(token.content, token)
    for token in names.values():
        if token.content in tokens:
            tokens[token.content].special = True
    tokenizer.add_tokens(list(tokens.values()))
    for number, token in listed.items():
        if (found := tokenizer.token_to_id(token.content)) != number:
            logging.warning("the added token %r has the id %d, not %d as its file says, as transformers has it",
                            token.content, found, number)


def _put_around(
    tokenizer: Tokenizer, kind: str, names: dict[str, AddedToken], settings: dict[str, Any], place: str | os.PathLike
) -> None:
    """Makes the post-processor that puts the class token before a text and the separator after it."""
    around = [(names[key].content, tokenizer.token_to_id(names[key].content)) for key in ("sep_token", "cls_token")]
    missing = [name for name, number in around if number is None]
    if missing:
        raise ValueError(f"{place}: the vocabulary has no {' and no '.join(reversed(missing))}: if the token has "
                         "another name, give it as cls_token or sep_token in tokenizer_config.json")
    if kind == "RobertaTokenizer":
        tokenizer.post_processor = processors.RobertaProcessing(
            *around, add_prefix_space=settings.get("add_prefix_space", False))
    else:
        tokenizer.post_processor = processors.BertProcessing(*around)
