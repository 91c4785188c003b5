"""Published figures that a report shows beside ours, each with its source; Spearman x 100 unless noted otherwise.

Their protocol is that of evaluation/tasks/sts.py: cosines, all pairs of a year together, STS13 without SMT, STS-B and
SICK-R test. Figures of other protocols are left out, such as MTEB's SICK-R, which is of all 9,927 pairs.
"""

from typing import NamedTuple

from evaluation.tasks.sts import SEVEN

MTEB = "MTEB leaderboard"
SIMCSE = "Gao et al. 2021, SimCSE"
HPD = "Zhao et al. 2022, HPD; model card"
SCT = "Limkonchotiwat et al. 2023, SCT"
DOCUMENTATION = "sentence-transformers, pretrained models"
COLUMNS = ("mean of seven STS", "reranking", "NLI", "14 sentence tasks", "6 search tasks")


class Published(NamedTuple):
    model: str
    source: str
    scores: dict[str, float]  # task -> score on the split test, x 100


class Averages(NamedTuple):
    model: str
    source: str
    values: dict[str, float]  # of COLUMNS


def _seven(model: str, source: str, *scores: float) -> Published:
    return Published(model, source, dict(zip(SEVEN, scores, strict=True)))


TASKS = (
    Published("all-MiniLM-L6-v2", MTEB, {"sts12": 72.37, "sts13": 80.60, "sts14": 75.59, "sts15": 85.39,
                                         "sts16": 78.99, "stsb": 82.03}),
    _seven("SimCSE unsupervised, BERT-base", SIMCSE, 68.40, 82.41, 74.38, 80.91, 78.56, 76.85, 72.23),
    _seven("SimCSE supervised, BERT-base", SIMCSE, 75.30, 84.67, 80.19, 85.40, 80.82, 84.25, 80.39),
    _seven("SimCSE supervised, RoBERTa-large", SIMCSE, 77.46, 87.27, 82.36, 86.66, 83.93, 86.70, 81.95),
    _seven("HPD TinyBERT-F128", HPD, 74.29, 83.05, 78.80, 84.62, 81.17, 84.36, 80.83),
    _seven("HPD MiniLM-F128", HPD, 74.94, 84.52, 80.25, 84.87, 81.90, 84.98, 81.15),
)


def _sct(model: str, *values: float) -> Averages:
    return Averages(f"SCT {model}", SCT, dict(zip(COLUMNS, values)))


def _general(model: str, sentences: float, search: float) -> Averages:
    return Averages(model, DOCUMENTATION, dict(zip(COLUMNS[3:], (sentences, search))))


AVERAGES = (
    Averages("SimCSE unsupervised, BERT-base", SIMCSE, {COLUMNS[0]: 76.25}),
    Averages("SimCSE supervised, BERT-base", SIMCSE, {COLUMNS[0]: 81.57}),
    Averages("SimCSE supervised, RoBERTa-large (HPD's teacher)", SIMCSE, {COLUMNS[0]: 83.76}),
    Averages("HPD TinyBERT-F128", HPD, {COLUMNS[0]: 81.02}),
    Averages("HPD MiniLM-F128", HPD, {COLUMNS[0]: 81.80}),
    _sct("self-supervised, BERT-Tiny", 69.73, 55.29, 71.89),
    _sct("self-supervised, BERT-Mini", 69.59),
    _sct("self-supervised, BERT-Small", 72.56, 58.59, 75.70),
    _sct("self-supervised, BERT-Base", 75.55, 60.97, 77.93),
    _sct("self-supervised, BERT-Large", 78.16, 63.02, 79.55),
    _sct("distilled, BERT-Tiny", 76.43, 61.14, 78.53),
    _sct("distilled, BERT-Mini", 77.58),
    _sct("distilled, BERT-Small", 78.16, 61.94, 80.44),
    _sct("distilled, BERT-Base", 79.58, 64.63, 80.97),
    _general("all-MiniLM-L6-v2", 68.06, 49.54),
    _general("all-MiniLM-L12-v2", 68.70, 50.82),
    _general("all-mpnet-base-v2", 69.57, 57.02),
    _general("all-roberta-large-v1", 70.23, 53.05),
)
