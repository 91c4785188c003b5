"""Score a model on the suites of the published tables; all scores x 100.

    python main.py evaluate --model=MODEL --suite=sts --data_dir=DIR --output=results.json

Every file is read and checked before the model is loaded, and each distinct text is embedded once. Held-out pairs and
retrieval put the model's own prompts, if it has any, before queries and candidates; the other tasks put its default
prompt, if it has one, before each text. --output also writes, beside results.json, results.items.json.gz: the scores
pair by pair and query by query, which `main.py report` draws and resamples.
"""

import collections
import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from absl import logging

from evaluation.results import Scored, check_output, print_table, write_results
from evaluation.task import MissingData, Result, Scores, Task
from evaluation.tasks import heldout, reranking, retrieval, sts, transfer, translation
from flags import REQUIRED, flag

if TYPE_CHECKING:
    from evaluation.embedder import Embedder

SUITES = {
    "sts": sts.SEVEN,
    "reranking": reranking.TASKS,
    "transfer": transfer.TASKS,
    "bitext": translation.TASKS,
}


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    model: str = flag(REQUIRED, "MODEL: a folder (ours, Hugging Face's, sentence-transformers') or a hub id")
    suite: tuple[str, ...] = flag((), "comma-separated: sts (sts12 to sts16, stsb, sickr), reranking (askubuntu, "
                                      "scidocs), transfer (sicke, snli), bitext (ntrex, tatoeba), or tasks of them, "
                                      "sts17, sts22, or the name of any file of STS pairs")
    data_dir: str = flag("", "folder with the files of --suite, in their published layouts (see BUILD.md)")
    split: str = flag("test", "split to score of STS, AskUbuntu, SciDocs and --retrieval: test, dev or train")
    languages: tuple[str, ...] = flag((), "languages of ntrex and tatoeba to score, by the codes in their files, such "
                                          "as deu,fra; "
                                          "empty: all")
    reranking: tuple[str, ...] = flag((), "files of {query, positive, negative} (.jsonl, .jsonl.gz), comma-separated: "
                                          "MAP and MRR@10 of each")
    retrieval: tuple[str, ...] = flag((), "folders of BEIR's layout (corpus.jsonl, queries.jsonl, qrels/), "
                                          "comma-separated: nDCG@10, MRR@10, Recall@100 and MAP@100 of each")
    pairs: tuple[str, ...] = flag((), "files of held-out pairs (.jsonl, .jsonl.gz), comma-separated: accuracy@1 and "
                                      "MRR@10 "
                                      "of finding each text's partner")
    parallel: tuple[str, ...] = flag((), "files of translations (.tsv, .tsv.gz; the header names the source language "
                                         "first, then "
                                         "the others), "
                                         "comma-separated: translation accuracy in each language")
    teacher: str = flag("", "MODEL: also the mean squared error of the model's embeddings of the translations against "
                            "the teacher's of their sources, both before normalisation")
    output: str = flag("", "results.json to write: a list of {task, split, metric, value, n, model, code, seconds}")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "number format of activations and matrix products")
    coordinator_address: str = flag("", "host:port of process 0, or auto on a pod; empty: one process")
    num_processes: int = flag(1, "processes of the run, with an explicit --coordinator_address", minimum=1)
    process_id: int = flag(0, "this process's number, with an explicit --coordinator_address", minimum=0)


def read_tasks(config: EvaluateConfig) -> list[Task]:
    """The tasks that the flags name, in their order; ValueError for what is unknown, missing or not as it should be."""
    tasks = read_suite_tasks(config)
    tasks += [reranking.read_file_task(path) for path in config.reranking]
    tasks += [retrieval.read_task(folder, config.split) for folder in config.retrieval]
    tasks += [heldout.read_task(path) for path in config.pairs]
    tasks += [translation.read_task(path) for path in config.parallel]
    twice = [name for name, count in collections.Counter(task.name for task in tasks).items() if count > 1]
    if twice:
        raise ValueError(f"two tasks are called {twice[0]}: score one of them in a run of its own")
    return tasks


def check_paths(config: EvaluateConfig) -> None:
    """ValueError that names the flag if it is given a folder but takes a file, or the other way round."""
    for flag_name in ("reranking", "pairs", "parallel"):
        for path in getattr(config, flag_name):
            if pathlib.Path(path).is_dir():
                raise ValueError(f"--{flag_name}={path} is a folder: name a file in it")
    for path in config.retrieval:
        if not pathlib.Path(path).is_dir():
            what = "is a file" if pathlib.Path(path).exists() else "does not exist"
            raise ValueError(f"--retrieval={path} {what}: name the folder of corpus.jsonl, queries.jsonl and qrels/")
    if config.data_dir and not pathlib.Path(config.data_dir).is_dir():
        raise ValueError(f"--data_dir={config.data_dir} is not a folder")


def read_suite_tasks(config: EvaluateConfig) -> list[Task]:
    """The tasks of --suite, each once; MissingData that names all that are not in --data_dir, and how to do without."""
    names = dict.fromkeys(task for name in config.suite for task in SUITES.get(name, (name,)))
    tasks: dict[str, Task] = {}
    missing: dict[str, MissingData] = {}
    for name in names:
        try:
            tasks[name] = read_suite_task(config, name)
        except MissingData as error:
            logging.error("%s", error)
            missing[name] = error
    if missing and tasks:
        raise MissingData(f"--data_dir={config.data_dir} lacks {len(missing)} of {len(names)} tasks: "
                          f"{', '.join(missing)} (above: where each was looked for); without them: "
                          f"--suite={','.join(tasks)}")
    if missing:
        raise next(iter(missing.values()))
    return list(tasks.values())


def read_suite_task(config: EvaluateConfig, name: str) -> Task:
    if name in reranking.TASKS:
        return reranking.read_task(config.data_dir, name, config.split)
    if name in transfer.TASKS:
        return transfer.read_task(config.data_dir, name)
    if name in translation.TASKS:
        return translation.read_suite_task(config.data_dir, name, config.languages)
    return sts.read_task(config.data_dir, name, config.split)


def evaluate(config: EvaluateConfig) -> None:
    """Scores the model on every task, prints a table and writes results.json. Bad flags and files fail before that.

    A task that cannot be scored (constant embeddings, for one) does not lose the others: they are printed and written,
    to partial-results.json, then the first such error is raised.
    """
    if not (config.suite or config.reranking or config.retrieval or config.pairs or config.parallel):
        raise ValueError("nothing to score: give --suite=sts with --data_dir=DIR, or --reranking, --retrieval, --pairs "
                         "or --parallel")
    if config.teacher and not (config.parallel or {"bitext", *translation.TASKS} & set(config.suite)):
        raise ValueError(f"--teacher={config.teacher} is compared with on translations: give --suite=bitext or "
                         "--parallel=FILE")
    if config.suite and not config.data_dir:
        raise ValueError(f"--suite={','.join(config.suite)} needs --data_dir, the folder of its files")
    if not config.split:
        raise ValueError("--split is empty; it must be test, dev or train")
    if config.languages and not {"bitext", *translation.TASKS} & set(config.suite):
        raise ValueError(f"--languages={','.join(config.languages)} chooses those of ntrex and tatoeba: give "
                         "--suite=bitext or one of them")
    check_paths(config)
    if config.output:
        check_output(config.output)
    tasks = read_tasks(config)

    import jax  # only once the flags make sense

    from evaluation.embedder import Embedder
    from inference.encoder import Encoder
    from sharding.processes import initialize_processes

    initialize_processes(config.coordinator_address, config.num_processes, config.process_id)
    load = functools.partial(Encoder.load, dtype=config.dtype)
    teacher = Embedder(load(config.teacher), is_teacher=True) if config.teacher else None
    embedder = Embedder(load(config.model), teacher)
    scored, errors = [], []
    for task in score_tasks(embedder, tasks):
        (errors if isinstance(task, ValueError) else scored).append(task)
    scored += suite_means(scored)
    if jax.process_index() == 0 and scored:
        print_table([result for task in scored for result in task.scores.results])
        if config.output:
            output = pathlib.Path(config.output)
            write_results(output.with_name(f"partial-{output.name}") if errors else output, scored, embedder)
    if errors:
        raise errors[0]


def score_tasks(embedder: "Embedder", tasks: list[Task]) -> Iterator[Scored | ValueError]:
    """Embeds the texts of all tasks in one go, then scores each; yields the error of a task that has no score."""
    started = time.perf_counter()
    embedder.remember((text for task in tasks for text in task.texts), progress=True)
    seconds_per_text = (time.perf_counter() - started) / max(1, len(embedder.texts))
    for task in tasks:
        started = time.perf_counter()
        try:
            scores = task.score(embedder)
        except ValueError as error:
            logging.error("%s: %s", task.name, error)
            yield ValueError(f"{task.name}: {error}")
            continue
        embedding = seconds_per_text * len(set(task.texts))
        yield Scored(task.name, scores, embedding + time.perf_counter() - started)


def suite_means(scored: list[Scored]) -> Iterator[Scored]:
    """The published averages: of the seven STS tasks (of fewer under a name that says so), of both reranking MAPs and
    of both transfer accuracies, these two only if both are there."""
    results = [result for task in scored for result in task.scores.results]
    seconds = {task.task: task.seconds for task in scored}
    if mean := sts.mean_of_seven(results):
        yield Scored(mean.task, Scores([mean], {}), sum(seconds.get(task, 0) for task in sts.SEVEN))
    for suite, metric in (("reranking", "map"), ("transfer", "accuracy")):
        first = {result.task: result for result in reversed(results)  # the headline; your own file is heldout
                 if result.metric == metric and result.split != "heldout"}
        if set(SUITES[suite]) <= first.keys():
            headlines = [first[task] for task in SUITES[suite]]
            mean = sum(result.value for result in headlines) / len(headlines)
            result = Result(f"{suite}_mean", headlines[0].split, metric, mean, len(headlines))
            yield Scored(result.task, Scores([result], {}), sum(seconds[task] for task in SUITES[suite]))
