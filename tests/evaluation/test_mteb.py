"""Tasks built from local files run through the real mteb on our encoder, in a process of the peer environment."""

import json
import math
import shutil
import sys

import numpy as np
import pytest
import scipy.stats

from evaluation.evaluate import EvaluateConfig, evaluate
from evaluation.mteb import RunMtebConfig, import_mteb, run_mteb
from inference.encoder import Encoder
from tests.conftest import REPOSITORY

STS = """sentence1	sentence2	score	split
A man plays the guitar.	Someone makes music on a guitar.	4.2	test
A dog runs over the wet field.	The dog is running through wet grass.	4.0	test
Two children build a tower of blocks.	The stock market fell sharply on Monday.	0	test
A woman slices an onion.	A woman is cutting a vegetable.	3.4	test
The train leaves at noon.	The train arrives at noon.	2.6	test
He reads a book in the garden.	He reads in the garden.	4.4	test
A cat sleeps on the roof.	A bird sings on the roof.	1.4	test
The bridge was closed after the storm.	Because of the storm nobody may cross the bridge.	3.8	test
They ordered soup and bread.	They ordered a taxi.	0.8	test
"""
DOCUMENTS = [
    ("d1", "Sourdough", "Feed the starter the evening before and let the dough rise overnight."),
    ("d2", "Baking powder", "It makes cakes rise without yeast and wants no resting time."),
    ("d3", "Yeast", "Dry yeast keeps for a year in a closed tin; warm water wakes it up."),
    ("d4", "Rye", "Bread of rye alone stays flat and moist and keeps for a week."),
    ("d5", "Ovens", "A hot stone under the loaf gives the crust its colour."),
    ("d6", "", "Salt slows the dough down and should not touch the yeast directly."),
]
QUERIES = [
    ("q1", "how long does dry yeast last", "d3"), ("q2", "why is my bread flat", "d4"),
    ("q3", "cake that need not rest", "d2"), ("q4", "brown crust", "d5"), ("q5", "what to do the day before", "d1"),
    ("q6", "order of ingredients in the bowl", "d6"),
]
WRITTEN = 0.51e-6  # mteb writes correlations to six decimals, nDCG to five
PROMPTS = {"query": "question: ", "passage": "from a cookbook: "}

MISSING = """
import importlib.util
result = [name for name in ("mteb", "jax", "tokenizers", "safetensors", "absl") if not importlib.util.find_spec(name)]
"""
RUN = """
import csv, os, sys
os.environ["HF_DATASETS_OFFLINE"] = "1"
sys.path.insert(0, arguments["repository"])
from evaluation import mteb as ours
ours.import_mteb()
import mteb
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol
from inference.encoder import Encoder

def metadata(name, kind, main_score):
    return TaskMetadata(name=name, type=kind, main_score=main_score, description="a few lines", category="t2t",
                        eval_langs=["eng-Latn"], dataset={"path": "local", "revision": "1"})

class LocalSts(AbsTaskSTS):
    metadata = metadata("LocalSts", "STS", "cosine_spearman")

    def load_data(self, **_):
        with open(arguments["sts"], encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\\t"))
        self.dataset = {"test": Dataset.from_list([row | {"score": float(row["score"])} for row in rows])}
        self.data_loaded = True

class LocalRetrieval(AbsTaskRetrieval):
    metadata = metadata("LocalRetrieval", "Retrieval", "ndcg_at_10")

    def load_data(self, **_):
        corpus = [dict(zip(("id", "title", "text"), row)) for row in arguments["documents"]]
        queries = [{"id": number, "text": text} for number, text, _ in arguments["queries"]]
        relevant = {number: {document: 1} for number, _, document in arguments["queries"]}
        self.dataset = {"default": {"test": {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries),
                                             "relevant_docs": relevant, "top_ranked": None}}}
        self.data_loaded = True

class RecordingEncoder(Encoder):
    calls = []

    def encode(self, texts, *, prompt_name=None, **options):
        self.calls.append([prompt_name, list(texts)])
        return super().encode(texts, prompt_name=prompt_name, **options)

encoder = ours.MtebEncoder(RecordingEncoder.load(arguments["model"]), "allpairs/cook")
ours.run_tasks(encoder, [LocalSts(), LocalRetrieval()], arguments["output"])
import kernels
from sentence_transformers import SentenceTransformer
peer = SentenceTransformer(arguments["model"], device="cpu")
theirs = mteb.evaluate(peer, [LocalSts(), LocalRetrieval()], cache=None)
result = {
    "theirs": {task.task_name: task.get_score() for task in theirs.task_results},
    "is_encoder": isinstance(encoder, EncoderProtocol), "calls": RecordingEncoder.calls, "kernels": kernels.__file__,
    "similarity": encoder.similarity([[3.0, 4.0]], [[3.0, 4.0], [-4.0, 3.0]]).tolist(),
}
"""


@pytest.fixture(scope="module")
def folder(minilm, tmp_path_factory):
    """A folder with the STS file and the real model with prompts."""
    folder = tmp_path_factory.mktemp("mteb")
    (folder / "local.tsv").write_text(STS, encoding="utf-8")
    settings = shutil.copytree(minilm, folder / "model") / "config_sentence_transformers.json"
    settings.chmod(0o644)
    settings.write_text(json.dumps({"prompts": PROMPTS}))
    return folder


@pytest.fixture(scope="module")
def answer(folder, peer):
    """What RUN says, and mteb's scores of each task from its file in the folder that a submission needs."""
    if missing := peer(MISSING):
        pytest.skip(f"the peer environment lacks {', '.join(missing)}: `make test-mteb` installs them")
    answer = peer(RUN, repository=str(REPOSITORY), model=str(folder / "model"), sts=str(folder / "local.tsv"),
                  documents=DOCUMENTS, queries=QUERIES, output=str(folder / "output"))
    revision = Encoder.load(folder / "model").fingerprint()
    results = folder / "output" / "results" / "allpairs__cook" / revision
    answer["meta"] = json.loads((results / "model_meta.json").read_text())
    for name in ("LocalSts", "LocalRetrieval"):
        [answer[name]] = json.loads((results / f"{name}.json").read_text())["scores"]["test"]
    return answer


def test_sts_scores_equal_ours_scipys_and_sentence_transformers(answer, folder):
    evaluate(EvaluateConfig(model=str(folder / "model"), suite=("local",), data_dir=str(folder),
                            output=str(folder / "results.json")))
    ours = {line["metric"]: line["value"] for line in json.loads((folder / "results.json").read_text())}
    for metric in ("cosine_spearman", "cosine_pearson"):
        assert 100 * answer["LocalSts"][metric] == pytest.approx(ours[metric], abs=100 * WRITTEN)
    first, second, human = zip(*(line.split("\t")[:3] for line in STS.splitlines()[1:]))
    encode = Encoder.load(folder / "model").encode
    expected = scipy.stats.spearmanr((encode(first) * encode(second)).sum(axis=1), [float(score) for score in human])
    assert answer["LocalSts"]["main_score"] == pytest.approx(expected.statistic, abs=WRITTEN)
    assert answer["LocalSts"]["main_score"] == pytest.approx(answer["theirs"]["LocalSts"], abs=WRITTEN)


def test_retrieval_is_that_of_texts_after_their_prompts(answer, folder):
    encode = Encoder.load(folder / "model").encode
    titled = [f"{title} {text}".strip() for _, title, text in DOCUMENTS]
    cosines = encode([query for _, query, _ in QUERIES], prompt_name="query") @ encode(titled, prompt_name="passage").T
    rows = [[name for name, _, _ in DOCUMENTS].index(document) for _, _, document in QUERIES]
    ranks = (cosines >= np.take_along_axis(cosines, np.array(rows)[:, None], axis=1)).sum(axis=1)
    assert ranks.max() > 1
    assert answer["LocalRetrieval"]["ndcg_at_10"] == pytest.approx(
        np.mean([1 / math.log2(1 + rank) for rank in ranks]), abs=10 * WRITTEN)
    assert answer["LocalRetrieval"]["ndcg_at_10"] == answer["theirs"]["LocalRetrieval"]
    by_prompt = {prompt: texts for prompt, texts in answer["calls"] if prompt}
    assert by_prompt["passage"] == titled and by_prompt["query"] == [query for _, query, _ in QUERIES]
    assert [prompt for prompt, _ in answer["calls"]].count(None) == 2  # the two sides of the STS file, each in one go
    assert len(answer["calls"]) == 4


def test_the_encoder_is_what_mteb_asks_for(answer):
    assert answer["is_encoder"] and answer["kernels"] == str(REPOSITORY / "kernels" / "__init__.py")
    assert answer["similarity"] == [pytest.approx([1, 0], abs=1e-6)]
    expected = {"name": "allpairs/cook", "max_tokens": 256, "embed_dim": 384, "similarity_fn_name": "cosine",
                "framework": ["JAX"], "use_instructions": True}
    assert {key: answer["meta"][key] for key in expected} == expected


@pytest.mark.parametrize("options, message", [
    ({}, "nothing to score: give --tasks"),
    ({"tasks": ("STSBenchmark",), "model_name": "minilm"}, "is ORGANISATION/MODEL, not minilm: give --model_name"),
])
def test_flags_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        run_mteb(RunMtebConfig(model="some/model", output_folder="out", **options))


def test_without_mteb(monkeypatch):
    path = [str(REPOSITORY), *sys.path]
    monkeypatch.setattr(sys, "path", list(path))
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ValueError, match=r"mteb is not installed: pip install -e '.\[mteb\]'"):
        import_mteb()
    assert sys.path == path
