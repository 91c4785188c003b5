"""Small random models of every family, made and embedded by transformers and sentence-transformers themselves."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

TEXTS = [
    "A man is playing a guitar on the stage.",
    "a man plays the guitar",
    "",
    "Zoë's naïve café costs 12.50 in the old town!",
    "UPPER CASE and lower case",
    "x",
    "the quick brown fox jumps over the lazy dog " * 12,  # longer than any max_length below
    "a man plays the guitar",
    "two dogs run; one of them barks (loudly), the other does not.",
]

CASES = {  # name -> (architecture, pooling, widths of the Dense heads, normalize)
    "bert": ("Bert", "mean", [], True),
    "bert-cls-dense": ("Bert", "cls", [24], True),
    "roberta": ("Roberta", "max", [], False),
    "xlm-roberta": ("XLMRoberta", "mean", [24, 16], False),
    "distilbert": ("DistilBert", "cls", [], True),
}

MAKE_MODELS = """
import os, torch, transformers
import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import ByteLevelBPETokenizer

torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
texts, folder = arguments["texts"], arguments["folder"]

def tokenizer(architecture):
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = sorted({word for text in texts for word in text.lower().split()} | set(letters + ".,!;()'"))
    if architecture == "XLMRoberta":
        special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        vocab = special + [("\\u2581" + word, -float(i)) for i, word in enumerate(words)] + [("<mask>", 0.0)]
        return transformers.XLMRobertaTokenizer(vocab=vocab, model_max_length=48)
    if architecture == "Roberta":
        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator(texts, vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
        trained.save_model(folder)
        return transformers.RobertaTokenizer.from_pretrained(folder, model_max_length=48)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *("##" + letter for letter in letters)]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    kind = getattr(transformers, architecture + "Tokenizer", transformers.BertTokenizer)
    return kind(vocab=vocab, do_lower_case=True, model_max_length=48)

for name, (architecture, pooling, widths, normalize) in arguments["cases"].items():
    place = os.path.join(folder, name)
    tokens = tokenizer(architecture)
    options = dict(vocab_size=len(tokens) + 3, pad_token_id=tokens.pad_token_id)
    if architecture == "DistilBert":
        options |= dict(dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64)
    else:
        options |= dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                        max_position_embeddings=64, type_vocab_size=1 if "Roberta" in architecture else 2)
    model = getattr(transformers, architecture + "Model")(getattr(transformers, architecture + "Config")(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(place + "-transformers")
    tokens.save_pretrained(place + "-transformers")
    modules = [Transformer(place + "-transformers"), Pooling(32, pooling_mode=pooling)]
    width = 32
    for index, out in enumerate(widths):
        activation = torch.nn.Identity() if index else torch.nn.Tanh()
        modules.append(Dense(width, out, bias=not index, activation_function=activation))
        width = out
    modules += [Normalize()] * normalize
    whole = SentenceTransformer(modules=modules, device="cpu")
    whole.max_seq_length = 40
    whole.save(place)
    np.save(place + ".npy", whole.encode(texts))
result = None
"""


class PeerModel(NamedTuple):
    transformers: Path  # folder written by transformers
    sentence_transformers: Path  # folder written by sentence-transformers
    embeddings: np.ndarray  # what sentence-transformers makes of TEXTS, [n, d]


@pytest.fixture(scope="session")
def peer_models(peer, tmp_path_factory) -> dict[str, PeerModel]:
    folder = tmp_path_factory.mktemp("peer_models")
    peer(MAKE_MODELS, texts=TEXTS, folder=str(folder), cases=CASES)
    return {
        name: PeerModel(folder / f"{name}-transformers", folder / name, np.load(folder / f"{name}.npy"))
        for name in CASES
    }
