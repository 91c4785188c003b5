"""Text -> token ids, through the `tokenizers` library, from a model's own files.

A text's tokens come without special tokens and untruncated; a row of a text is [prefix] + tokens[:max_length - 2] +
[suffix], which is what Hugging Face's post-processors make of a single text in BERT ([CLS] .. [SEP]) and RoBERTa
(<s> .. </s>).
"""

import functools
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from data.files import hub_snapshot

# Characters of a text that are tokenised. No model here reads more than 512 tokens, so the cap changes nothing that is
# trained on, and a text of 1 MB costs what one of 100 kB does.
MAX_TEXT_CHARACTERS = 100_000

# Files that travel with tokenizer.json, so that an exported folder is complete.
COMPANION_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
                   "merges.txt", "sentencepiece.bpe.model")
_HUB_PATTERNS = ["tokenizer.json", *COMPANION_FILES, "modules.json", "*/tokenizer.json", "config.json"]
_PAD_NAMES = ("[PAD]", "<pad>")
_PREFIX_NAMES = ("[CLS]", "<s>")
_SUFFIX_NAMES = ("[SEP]", "</s>")


class TextTokenizer:
    """A `tokenizers.Tokenizer` with what training needs of it; made by `load_tokenizer`."""

    def __init__(self, tokenizer: Tokenizer, folder: Path | None = None):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._folder = folder
        self.vocab_size: int = max(tokenizer.get_vocab().values()) + 1  # one more than the largest id
        self.prefix_id, self.suffix_id = self._special_pair()
        self.pad_id: int = self._first_known(_PAD_NAMES)

    def _special_pair(self) -> tuple[int, int]:
        """The two tokens that the post-processor puts around a text; by name where there is no post-processor."""
        around_nothing = self._tokenizer.encode("").ids
        if len(around_nothing) == 2:
            return around_nothing[0], around_nothing[1]
        if around_nothing:
            raise ValueError(
                f"{self._folder}: the tokenizer puts {len(around_nothing)} special tokens around a text; "
                "a prefix and a suffix are supported"
            )
        return self._first_known(_PREFIX_NAMES), self._first_known(_SUFFIX_NAMES)

    def _first_known(self, names: tuple[str, ...]) -> int:
        ids = [self._tokenizer.token_to_id(name) for name in names]
        known = [token_id for token_id in ids if token_id is not None]
        if not known:
            raise ValueError(f"{self._folder}: the tokenizer has none of the tokens {', '.join(names)}")
        return known[0]

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The token ids of each text, int32, without special tokens; of its first 100,000 characters."""
        capped = [text[:MAX_TEXT_CHARACTERS] for text in texts]
        encodings = self._tokenizer.encode_batch_fast(capped, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the parts of the canonical tokenizer.json that decide which tokens a text becomes."""
        whole = json.loads(self._tokenizer.to_str())
        parts = {key: whole[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_folder(self, folder: str | Path) -> None:
        """Writes tokenizer.json and the files that came with it; a tokenizer_config.json if there was none."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(os.fspath(folder / "tokenizer.json"))
        for name in COMPANION_FILES:
            if self._folder is not None and (self._folder / name).exists():
                shutil.copyfile(self._folder / name, folder / name)
        if not (folder / "tokenizer_config.json").exists():
            (folder / "tokenizer_config.json").write_text(json.dumps(self._minimal_config(), indent=2) + "\n")

    def _minimal_config(self) -> dict:
        """What transformers needs beside tokenizer.json: the class that takes it as it is, and the special tokens."""
        prefix, suffix = self._tokenizer.id_to_token(self.prefix_id), self._tokenizer.id_to_token(self.suffix_id)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "cls_token": prefix,
            "sep_token": suffix,
            "pad_token": self._tokenizer.id_to_token(self.pad_id),
        }
        optional = (("unk_token", "[UNK]"), ("unk_token", "<unk>"), ("mask_token", "[MASK]"), ("mask_token", "<mask>"))
        config.update((key, token) for key, token in optional if self._tokenizer.token_to_id(token) is not None)
        return config


def load_tokenizer(source: str | Path) -> TextTokenizer:
    """Reads a tokenizer from a folder (ours, Hugging Face's, sentence-transformers'), a tokenizer.json or a hub id.

    A folder has tokenizer.json, or vocab.txt (BERT), or vocab.json and merges.txt (RoBERTa). XLM-RoBERTa's
    sentencepiece model alone is not read: its folder must have tokenizer.json.
    """
    path = Path(source)
    if path.is_file():
        return TextTokenizer(_read_tokenizer_json(path), path.parent)
    folder = _tokenizer_folder(path if path.is_dir() else _download(str(source)))
    if (folder / "tokenizer.json").exists():
        return TextTokenizer(_read_tokenizer_json(folder / "tokenizer.json"), folder)
    if (folder / "vocab.txt").exists():
        return TextTokenizer(_bert_tokenizer(folder), folder)
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return TextTokenizer(_roberta_tokenizer(folder), folder)
    advice = "a tokenizer.json, a vocab.txt (BERT), or a vocab.json and a merges.txt (RoBERTa) is needed"
    if (folder / "sentencepiece.bpe.model").exists():
        advice = ("a sentencepiece model is not read: write its tokenizer.json with "
                  "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)")
    raise ValueError(f"no tokenizer in {folder}: {advice}")


def _download(name: str) -> Path:
    if name.startswith((".", "/")) or name.count("/") > 1:
        raise ValueError(f"no tokenizer at {name}: there is no such folder or file, and it is no hub id")
    return hub_snapshot(name, _HUB_PATTERNS)


def _tokenizer_folder(folder: Path) -> Path:
    """The folder itself, or the transformer part of a sentence-transformers folder that keeps it apart."""
    if (folder / "tokenizer.json").exists() or (folder / "vocab.txt").exists() or (folder / "vocab.json").exists():
        return folder
    if (folder / "modules.json").exists():
        return folder / json.loads((folder / "modules.json").read_text())[0]["path"]
    return folder


def _read_tokenizer_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is no tokenizer.json that the tokenizers library reads: {error}") from error


def _tokenizer_config(folder: Path) -> dict:
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _bert_tokenizer(folder: Path) -> Tokenizer:
    """BERT's WordPiece from vocab.txt (one token a line; its line number is its id)."""
    config = _tokenizer_config(folder)
    vocabulary = models.WordPiece.read_file(os.fspath(folder / "vocab.txt"))
    return bert_tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100),
        lower_case=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        chinese_characters=config.get("tokenize_chinese_chars", True),
    )


def bert_tokenizer(
    model: models.WordPiece, lower_case: bool = True, strip_accents: bool | None = None, chinese_characters: bool = True
) -> Tokenizer:
    """The pipeline of BERT around a WordPiece model that has [CLS] and [SEP] (its special tokens are added here)."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese_characters, strip_accents=strip_accents, lowercase=lower_case
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.add_special_tokens([token for token in special if tokenizer.token_to_id(token) is not None])
    prefix, suffix = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    if prefix is None or suffix is None:
        raise ValueError("the WordPiece vocabulary has no [CLS] or no [SEP]")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", suffix), ("[CLS]", prefix))
    return tokenizer


def _roberta_tokenizer(folder: Path) -> Tokenizer:
    """RoBERTa's byte-level BPE from vocab.json and merges.txt."""
    add_prefix_space = _tokenizer_config(folder).get("add_prefix_space", False)
    tokenizer = Tokenizer(models.BPE.from_file(os.fspath(folder / "vocab.json"), os.fspath(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    # <mask> takes the space before it, as in RoBERTa's pre-training.
    special.append(AddedToken("<mask>", special=True, normalized=False, lstrip=True))
    tokenizer.add_special_tokens([token for token in special if tokenizer.token_to_id(token.content) is not None])
    prefix, suffix = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    if prefix is None or suffix is None:
        raise ValueError(f"{folder / 'vocab.json'} has no <s> or no </s>")
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", suffix), ("<s>", prefix), add_prefix_space=add_prefix_space
    )
    return tokenizer
