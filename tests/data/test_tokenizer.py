"""Tokens equal those of transformers for the real model, from tokenizer.json and from vocab.txt alike."""

import json
import shutil
import time

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer

from data.tokenizer import MAX_TEXT_CHARACTERS, TextTokenizer, load_tokenizer
from tests.conftest import REPOSITORY

BERT = REPOSITORY / "data" / "sample" / "model"

TEXTS = [
    "A plane is taking off.", "Näïve café — “quotes”, don't!", "你好 world", "a" * 150, "", "[SEP] inside [MASK]",
    "tab\tnew\nline", "emoji 😀 and ﬁ ligature", "ÀÉÎ ß ǅ", "3.14 1,000,000",
    "x" * 20 + "\u200b" + "y", "\x00control\x07",
]
PEER_ENCODE = (
    "from transformers import AutoTokenizer\n"
    "tokenizer = AutoTokenizer.from_pretrained(arguments['folder'])\n"
    "result = [tokenizer(text)['input_ids'] for text in arguments['texts']]\n"
)


def with_special(tokenizer: TextTokenizer, tokens: np.ndarray) -> list[int]:
    return [tokenizer.prefix_id, *tokens.tolist(), tokenizer.suffix_id]


@pytest.fixture(scope="module")
def roberta_folder(tmp_path_factory):
    """A RoBERTa tokenizer as the original models have it: vocab.json and merges.txt alone."""
    folder = tmp_path_factory.mktemp("roberta")
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS * 3 + ["the plane took off again"], vocab_size=400, special_tokens=special)
    trained.save_model(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    return folder


@pytest.mark.peer
def test_bert_tokens_equal_transformers(minilm, peer, tmp_path):
    expected = peer(PEER_ENCODE, folder=str(minilm), texts=TEXTS)
    shutil.copy(minilm / "vocab.txt", tmp_path)
    for folder in (minilm, minilm / "tokenizer.json", tmp_path):
        tokenizer = load_tokenizer(folder)
        assert [with_special(tokenizer, tokens) for tokens in tokenizer.encode(TEXTS)] == expected
        assert (tokenizer.prefix_id, tokenizer.suffix_id, tokenizer.pad_id) == (101, 102, 0)
        assert tokenizer.vocab_size == 30522
    assert load_tokenizer(minilm).fingerprint == load_tokenizer(tmp_path).fingerprint


@pytest.mark.peer
def test_cased_bert_from_vocabulary(tmp_path, peer):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "A", "a", "É", "e", "##é", "##x", "pl", "##ane", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "tokenizer_class": "BertTokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    texts = ["A a plane.", "É eé aé Ax"]
    tokenizer = load_tokenizer(tmp_path)
    encoded = [with_special(tokenizer, tokens) for tokens in tokenizer.encode(texts)]
    assert encoded == peer(PEER_ENCODE, folder=str(tmp_path), texts=texts)
    assert encoded[0] == [2, 5, 6, 11, 12, 13, 3] and encoded[1][1] == 7


@pytest.mark.peer
def test_roberta_tokens_equal_transformers(roberta_folder, peer):
    tokenizer = load_tokenizer(roberta_folder)
    texts = [*TEXTS, " leading space"]
    expected = peer(PEER_ENCODE, folder=str(roberta_folder), texts=texts)
    assert [with_special(tokenizer, tokens) for tokens in tokenizer.encode(texts)] == expected
    names = ("<s>", "</s>", "<pad>")
    vocabulary = json.loads((roberta_folder / "vocab.json").read_text())
    assert [tokenizer.prefix_id, tokenizer.suffix_id, tokenizer.pad_id] == [vocabulary[name] for name in names]


@pytest.mark.peer
def test_written_folder_is_the_same_tokenizer(roberta_folder, minilm, peer, tmp_path):
    """to_folder -> load_tokenizer keeps the fingerprint, and transformers reads the folder to the same tokens."""
    for index, source in enumerate((roberta_folder, minilm)):
        tokenizer = load_tokenizer(source)
        target = tmp_path / str(index)
        tokenizer.to_folder(target)
        assert load_tokenizer(target).fingerprint == tokenizer.fingerprint
        expected = [with_special(tokenizer, tokens) for tokens in tokenizer.encode(TEXTS)]
        assert peer(PEER_ENCODE, folder=str(target), texts=TEXTS) == expected


def test_fingerprint_tells_tokenizers_apart(roberta_folder, tmp_path):
    content = json.loads((BERT / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["the"], vocabulary["of"] = vocabulary["of"], vocabulary["the"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    fingerprints = {load_tokenizer(folder).fingerprint for folder in (BERT, roberta_folder, tmp_path)}
    assert len(fingerprints) == 3


def test_sentence_transformers_folder_with_a_module_of_its_own(tmp_path):
    (tmp_path / "0_Transformer").mkdir()
    shutil.copy(BERT / "tokenizer.json", tmp_path / "0_Transformer")
    (tmp_path / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "0_Transformer", "type": "Transformer"}]')
    assert load_tokenizer(tmp_path).fingerprint == load_tokenizer(BERT).fingerprint


def test_padding_and_truncation_of_the_file_are_off(tmp_path):
    content = json.loads((BERT / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer.encode(["one two three four five six seven eight"])[0]) == 8
    assert tokenizer.fingerprint == load_tokenizer(BERT).fingerprint


def test_a_text_of_a_megabyte(roberta_folder):
    text = "word " * 200_000
    start = time.monotonic()
    (tokens,) = load_tokenizer(BERT).encode([text])
    assert len(tokens) == MAX_TEXT_CHARACTERS // 5
    assert len(load_tokenizer(roberta_folder).encode(["x" * 1_000_000])[0]) > 512
    assert time.monotonic() - start < 20


def test_what_is_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="no such folder or file"):
        load_tokenizer(tmp_path / "absent" / "deeper")
    with pytest.raises(ValueError, match=r"no tokenizer in .*tokenizer\.json, a vocab\.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"x")
    with pytest.raises(ValueError, match="sentencepiece model is not read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("[PAD]\na\n")
    with pytest.raises(ValueError, match=r"no \[CLS\]"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="there is no folder no-organisation/no-model, and as a hub id"):
        load_tokenizer("no-organisation/no-model")
