"""The measures of a ranking of documents, as trec_eval (and so BEIR) computes them.

g_i is the gain of the document at rank i (from 1), 0 if it is not judged. Relevant documents have a gain above 0.
"""

import math
from collections.abc import Mapping

DEPTH = 100  # of the ranking of a query, in documents
METRICS = ("ndcg@10", "mrr@10", "recall@100", "map@100")  # the headline first


def trec_order(found: Mapping[str, float]) -> list[str]:
    """Document ids by score, highest first; equal scores by id, the last first, as trec_eval orders them.

    trec_eval's scores are float32: smaller differences are ties only if the caller rounds the scores. Raises ValueError
    for a score that is NaN.
    """
    for document, score in found.items():
        if math.isnan(score):
            raise ValueError(f"the score of document {document!r} is NaN")
    return sorted(found, key=lambda document: (found[document], document), reverse=True)


def ranking_metrics(found: Mapping[str, float], judged: Mapping[str, int]) -> dict[str, float]:
    """The METRICS of one query, each in [0, 1]; all 0 if no judged document has a gain above 0.

    ndcg@10     sum over i <= 10 of g_i / log2(i + 1), divided by the same sum of the best possible ranking
    mrr@10      1 / rank of the first relevant document, 0 beyond rank 10
    recall@100  share of the relevant documents that are among the first 100
    map@100     sum, over the ranks i <= 100 of relevant documents, of (relevant documents up to i) / i, divided by the
                number of relevant documents

    A gain below 0 counts as 0. trec_eval's ndcg_cut_10, recip_rank of a run cut at 10, recall_100, map_cut_100.

    Args:
        found: score of each document that was found, any number of them.
        judged: gain of each document that was judged.
    """
    ideal = sorted((gain for gain in judged.values() if gain > 0), reverse=True)
    if not ideal:
        return dict.fromkeys(METRICS, 0.0)
    gains = [max(judged.get(document, 0), 0) for document in trec_order(found)[:DEPTH]]
    relevant_ranks = [rank for rank, gain in enumerate(gains, start=1) if gain > 0]
    return {
        "ndcg@10": _discounted(gains[:10]) / _discounted(ideal[:10]),
        "mrr@10": 1 / relevant_ranks[0] if relevant_ranks and relevant_ranks[0] <= 10 else 0.0,
        "recall@100": len(relevant_ranks) / len(ideal),
        "map@100": sum(count / rank for count, rank in enumerate(relevant_ranks, start=1)) / len(ideal),
    }


def _discounted(gains: list[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))
