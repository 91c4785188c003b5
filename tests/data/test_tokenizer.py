"""Tokens equal those of transformers for the real model, from tokenizer.json and from vocab.txt alike."""

import itertools
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
PEER_ENCODE_ALL = (
    "from transformers import AutoTokenizer\n"
    "result = []\n"
    "for folder in arguments['folders']:\n"
    "    tokenizer = AutoTokenizer.from_pretrained(folder)\n"
    "    result.append([tokenizer(text)['input_ids'] for text in arguments['texts']])\n"
)
HARD_TEXTS = [
    "HELLO World in Paris", "Näïve CAFÉ à la Crème, ÀÉÎ", "你好 world 東京タワー",
    "[MASK] and [mask] <mask> a <MASK> b", "[COVID] and sarscov found", "SARSCOV [covid]xsarscovx", "İstanbul ẞ ǅ ﬁ",
    "<cls> [CLS] <s> </s> [UNK] <extra>", " leading and  double  space ",
]


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


def test_bert_tokens_equal_transformers(minilm, peer, tmp_path):
    expected = peer(PEER_ENCODE, folder=str(minilm), texts=TEXTS)
    shutil.copy(minilm / "vocab.txt", tmp_path)
    for folder in (minilm, minilm / "tokenizer.json", tmp_path):
        tokenizer = load_tokenizer(folder)
        assert [with_special(tokenizer, tokens) for tokens in tokenizer.encode(TEXTS)] == expected
        assert (tokenizer.prefix_id, tokenizer.suffix_id, tokenizer.pad_id) == (101, 102, 0)
        assert tokenizer.vocab_size == 30522
    assert load_tokenizer(minilm).fingerprint == load_tokenizer(tmp_path).fingerprint


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


def test_roberta_tokens_equal_transformers(roberta_folder, peer):
    tokenizer = load_tokenizer(roberta_folder)
    texts = [*TEXTS, " leading space"]
    expected = peer(PEER_ENCODE, folder=str(roberta_folder), texts=texts)
    assert [with_special(tokenizer, tokens) for tokens in tokenizer.encode(texts)] == expected
    names = ("<s>", "</s>", "<pad>")
    vocabulary = json.loads((roberta_folder / "vocab.json").read_text())
    assert [tokenizer.prefix_id, tokenizer.suffix_id, tokenizer.pad_id] == [vocabulary[name] for name in names]


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


def write_folder(folder, source, files=(), **written):
    """A folder with copies of some of source's files; written: name without .json -> value."""
    folder.mkdir()
    for name in files:
        shutil.copy(source / name, folder)
    for name, value in ({"config": {"model_type": "bert"}} | written).items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def encoded(folder) -> list[list[int]]:
    tokenizer = load_tokenizer(folder)
    return [with_special(tokenizer, tokens) for tokens in tokenizer.encode(HARD_TEXTS)]


def check_equal_transformers(peer, folders, tmp_path):
    """Our tokens of every folder are those of transformers, and stay so in the folder that we write."""
    written = [tmp_path / "written" / str(index) for index, _ in enumerate(folders)]
    for folder, copy in zip(folders, written, strict=True):
        load_tokenizer(folder).to_folder(copy)
        assert load_tokenizer(copy).fingerprint == load_tokenizer(folder).fingerprint, folder
    expected = peer(PEER_ENCODE_ALL, folders=[str(folder) for folder in [*folders, *written]], texts=HARD_TEXTS)
    for folder, theirs in zip([*folders, *written], expected, strict=True):
        for text, one, other in zip(HARD_TEXTS, encoded(folder), theirs, strict=True):
            assert one == other, (folder.name, text)


@pytest.mark.peer
def test_settings_beside_tokenizer_json_are_read_as_transformers_reads_them(minilm, peer, tmp_path):
    values = {"do_lower_case": (None, True, False), "strip_accents": ("", None, True, False),
              "tokenize_chinese_chars": (None, True, False)}
    classes = ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "PreTrainedTokenizerFast", None)
    folders = []
    for index, combination in enumerate(itertools.product(*values.values())):
        settings = {key: value for key, value in zip(values, combination, strict=True)
                    if value != "" and (value is not None or key == "strip_accents")}
        for name in classes if index % 7 == 0 else classes[:1]:
            config = settings | ({"tokenizer_class": name} if name else {})
            folders.append(write_folder(tmp_path / f"{index}-{name}", minilm, ["tokenizer.json"],
                                        tokenizer_config=config))
    folders.append(write_folder(tmp_path / "none", minilm, ["tokenizer.json"]))
    folders.append(write_folder(tmp_path / "distilbert", minilm, ["tokenizer.json"],
                                config={"model_type": "distilbert"}, tokenizer_config={"do_lower_case": False}))
    check_equal_transformers(peer, folders, tmp_path)
    cased = write_folder(tmp_path / "cased", minilm, ["tokenizer.json"], tokenizer_config={
        "do_lower_case": False, "tokenizer_class": "BertTokenizer"})
    assert load_tokenizer(cased).encode(["HELLO World"])[0].tolist() == [100, 100]


@pytest.mark.peer
def test_added_and_renamed_tokens(minilm, roberta_folder, peer, tmp_path):
    added = {"[COVID]": 30522, "sarscov": 30523}
    renamed = (minilm / "vocab.txt").read_text().replace("[CLS]\n", "<cls>\n").replace("[PAD]\n", "<blank>\n")
    named = {"cls_token": "<cls>", "pad_token": {"content": "<blank>", "lstrip": False, "rstrip": False,
                                                 "normalized": False, "single_word": False}}
    as_objects = {"cls_token": {"__type": "AddedToken", "content": "<cls>", "lstrip": False, "rstrip": False,
                                "normalized": False, "single_word": False, "special": True}, "pad_token": "<blank>"}
    vocabulary = ["vocab.txt"]
    folders = [
        write_folder(tmp_path / "added", minilm, vocabulary, added_tokens=added),
        write_folder(tmp_path / "added-cased", minilm, vocabulary, added_tokens=added,
                     tokenizer_config={"do_lower_case": False}),
        write_folder(tmp_path / "added-special", minilm, vocabulary, added_tokens=added,
                     special_tokens_map={"additional_special_tokens": ["[COVID]", "<extra>"]}),
        write_folder(tmp_path / "added-json", minilm, ["tokenizer.json"], added_tokens=added,
                     tokenizer_config={"tokenizer_class": "BertTokenizer"}),
        write_folder(tmp_path / "added-as-it-is", minilm, ["tokenizer.json"], added_tokens=added,
                     tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"}),
        write_folder(tmp_path / "decoder", minilm, vocabulary, tokenizer_config={
            "added_tokens_decoder": {"30523": {"content": "sarscov", "normalized": True, "special": False},
                                     "30522": {"content": "[COVID]", "normalized": False, "special": True}}}),
        write_folder(tmp_path / "map", minilm, [], special_tokens_map=named),
        write_folder(tmp_path / "config", minilm, [], tokenizer_config=as_objects),
        write_folder(tmp_path / "both", minilm, [], tokenizer_config={"cls_token": "[CLS]"},
                     special_tokens_map=named, added_tokens=added),
    ]
    for folder in folders[-3:]:
        (folder / "vocab.txt").write_text(renamed)
    bpe = json.loads((roberta_folder / "vocab.json").read_text())
    moved = {{"<s>": "<cls>", "<pad>": "<blank>"}.get(token, token): number for token, number in bpe.items()}
    for name, values in (("plain", {}), ("space", {"tokenizer_config": {"add_prefix_space": True}}),
                         ("added", {"added_tokens": {"[COVID]": len(bpe), "sarscov": len(bpe) + 1}})):
        folders.append(write_folder(tmp_path / f"roberta-{name}", roberta_folder, ["vocab.json", "merges.txt"],
                                    config={"model_type": "roberta"}, **values))
    for name in ("special_tokens_map", "tokenizer_config"):
        values = {"cls_token": "<cls>", "bos_token": "<cls>", "pad_token": "<blank>"}
        folders.append(write_folder(tmp_path / f"roberta-{name}", roberta_folder, ["merges.txt"], vocab=moved,
                                    config={"model_type": "roberta"}, **{name: values}))
    load_tokenizer(folders[-5]).to_folder(tmp_path / "json")
    folders.append(write_folder(tmp_path / "roberta-json-space", tmp_path / "json", ["tokenizer.json"],
                                config={"model_type": "roberta"}, tokenizer_config={"add_prefix_space": True}))
    check_equal_transformers(peer, folders, tmp_path)
    assert load_tokenizer(folders[0]).encode(["[COVID] and sarscov found"])[0].tolist() == [30522, 1998, 30523, 2179]
    for folder in folders[6:9]:
        tokenizer = load_tokenizer(folder)
        assert (tokenizer.prefix_id, tokenizer.suffix_id, tokenizer.pad_id) == (101, 102, 0)


@pytest.mark.peer
def test_lower_casing_of_sentence_transformers(minilm, roberta_folder, peer, tmp_path):
    """do_lower_case beside a cased tokenizer is part of the tokenizer, and added tokens stay as they are."""
    lower = {"max_seq_length": 40, "do_lower_case": True}
    cased = {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}
    folders = [
        write_folder(tmp_path / "bert", minilm, ["tokenizer.json"], tokenizer_config=cased,
                     sentence_bert_config=lower),
        write_folder(tmp_path / "added", minilm, ["vocab.txt"], tokenizer_config=cased,
                     sentence_bert_config=lower, added_tokens={"[COVID]": 30522, "sarscov": 30523}),
        write_folder(tmp_path / "uncased", minilm, ["tokenizer.json"], sentence_bert_config=lower),
        write_folder(tmp_path / "roberta", roberta_folder, ["vocab.json", "merges.txt"],
                     config={"model_type": "roberta"}, sentence_roberta_config=lower),
    ]
    for folder in folders:
        load_tokenizer(folder).to_folder(copy := tmp_path / f"{folder.name}-written")
        assert load_tokenizer(copy).fingerprint == load_tokenizer(folder).fingerprint
    expected = peer(
        """
from tokenizers.normalizers import Lowercase, Sequence
from transformers import AutoTokenizer
result = []
for folder in arguments["folders"]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    normalizer = tokenizer.backend_tokenizer.normalizer  # sentence-transformers' Transformer.__init__
    parts = [Lowercase()] + ([normalizer] if normalizer is not None else [])
    tokenizer.backend_tokenizer.normalizer = Sequence(parts)
    result.append([tokenizer(text)["input_ids"] for text in arguments["texts"]])
""", folders=[str(folder) for folder in folders], texts=HARD_TEXTS)
    assert [encoded(folder) for folder in folders] == expected
    (ids,) = load_tokenizer(folders[0]).encode(["HELLO World in Paris [MASK]"])
    assert ids.tolist() == [7592, 2088, 1999, 3000, 103]
