"""Score a model on the suites of the published tables; all scores x 100.

    python main.py evaluate --model=MODEL --suite=sts --data_dir=DIR --output=results.json

Every file is read and checked before the model is loaded, and each distinct text is embedded once. Held-out pairs and
retrieval put the model's own prompts, if it has any, before queries and candidates; the other tasks put its default
prompt, if it has one, before each text. --output also writes results.items.json.gz beside results.json: the scores of
each pair and query, for `main.py report`.
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
from evaluation.task import MissingData, Result, Scores, Task, data_folder
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
    model: str = flag(REQUIRED, "MODEL: a folder (ours, Hugging Face's, sentence-transformers', or the WORKDIR of a "
                                "training run) or a hub id")
    suite: tuple[str, ...] = flag((), "suites or tasks, comma-separated. Suites: sts (tasks sts12 to sts16, stsb, "
                                      "sickr), reranking (askubuntu, scidocs), transfer (sicke, snli), bitext (ntrex, "
                                      "tatoeba). Further tasks: sts17, sts22, and any file of STS pairs, by its name")
    data_dir: str = flag("", "folder with the files of --suite, in their published layouts (see BUILD.md)")
    split: str = flag("test", "split to score (STS, AskUbuntu, SciDocs and --retrieval): test, dev or train")
    languages: tuple[str, ...] = flag((), "languages of ntrex and tatoeba to score, by the codes in their files, such "
                                          "as deu,fra; empty: all")
    reranking: tuple[str, ...] = flag((), "files of {query, positive, negative} (.jsonl, .jsonl.gz), comma-separated; "
                                          "scored by MAP and MRR@10")
    retrieval: tuple[str, ...] = flag((), "folders in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/), "
                                          "comma-separated; scored by nDCG@10, MRR@10, Recall@100 and MAP@100")
    pairs: tuple[str, ...] = flag((), "files of held-out pairs (.jsonl, .jsonl.gz), comma-separated; scored by "
                                      "accuracy@1 and MRR@10 of finding the second text of each pair by the first")
    parallel: tuple[str, ...] = flag((), "files of translations (.tsv, .tsv.gz; the header names the source language "
                                         "first, then the others), comma-separated; scored by translation accuracy in "
                                         "each language")
    teacher: str = flag("", "MODEL whose embeddings of the source texts are compared with the model's embeddings of "
                            "their translations (--suite=bitext or --parallel): the mean squared error, before "
                            "normalisation, is scored too; empty: no teacher")
    output: str = flag("", "results.json to write: a list of {task, split, metric, value, n, model, code, seconds}; "
                           "empty: the scores are only printed")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "dtype of activations and matrix products")
    coordinator_address: str = flag("", "host:port of process 0, or auto on a pod; empty: one process")
    num_processes: int = flag(1, "number of processes, with an explicit --coordinator_address", minimum=1)
    process_id: int = flag(0, "number of this process, from 0, with an explicit --coordinator_address", minimum=0)


def read_tasks(config: EvaluateConfig) -> list[Task]:
    """The tasks that the flags name, in order. ValueError for tasks and files that are unknown, missing or bad."""
    tasks = read_suite_tasks(config)
    tasks += [reranking.read_file_task(path) for path in config.reranking]
    tasks += [retrieval.read_task(folder, config.split) for folder in config.retrieval]
    tasks += [heldout.read_task(path) for path in config.pairs]
    tasks += [translation.read_task(path) for path in config.parallel]
    twice = [name for name, count in collections.Counter(task.name for task in tasks).items() if count > 1]
    if twice:
        raise ValueError(f"two tasks have the name {twice[0]}: score one of them in a separate run")
    return tasks


def check_paths(config: EvaluateConfig) -> None:
    """Raises ValueError that names the flag if a folder is given for a file, or a file for a folder."""
    for flag_name in ("reranking", "pairs", "parallel"):
        for path in getattr(config, flag_name):
            if pathlib.Path(path).is_dir():
                raise ValueError(f"--{flag_name}={path} is a folder: name a file in it")
    for path in config.retrieval:
        if not pathlib.Path(path).is_dir():
            what = "is a file" if pathlib.Path(path).exists() else "does not exist"
            raise ValueError(f"--retrieval={path} {what}: name the folder of corpus.jsonl, queries.jsonl and qrels/")
    data_folder(config.data_dir)


def read_suite_tasks(config: EvaluateConfig) -> list[Task]:
    """The tasks of --suite, each once. Raises MissingData that names all missing tasks, and how to do without them."""
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
                          f"{', '.join(missing)} (the lines above say where each was looked for). To do without: "
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
    other_suites = dict.fromkeys([*SUITES, *(task for tasks in SUITES.values() for task in tasks)])
    return sts.read_task(config.data_dir, name, config.split, tuple(other_suites))


def evaluate(config: EvaluateConfig) -> None:
    """Scores the model on every task, prints a table and writes results.json. Bad flags and files fail before that.

    If a task cannot be scored (because of constant embeddings, for example), the scores of the others are printed and
    written to partial-results.json. Then the first such error is raised.
    """
    if not (config.suite or config.reranking or config.retrieval or config.pairs or config.parallel):
        raise ValueError("nothing to score: give --suite=sts with --data_dir=DIR, or --reranking, --retrieval, --pairs "
                         "or --parallel")
    if config.teacher and not (config.parallel or {"bitext", *translation.TASKS} & set(config.suite)):
        raise ValueError(f"--teacher={config.teacher} needs translations to compare on: give --suite=bitext or "
                         "--parallel=FILE")
    if config.suite and not config.data_dir:
        raise ValueError(f"--suite={','.join(config.suite)} needs --data_dir, the folder of its files")
    if not config.split:
        raise ValueError("--split is empty; it must be test, dev or train")
    if config.languages and not {"bitext", *translation.TASKS} & set(config.suite):
        raise ValueError(f"--languages={','.join(config.languages)} chooses languages of ntrex and tatoeba: give "
                         "--suite=bitext, ntrex or tatoeba")
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
    """The published averages: of the seven STS tasks (of fewer under a name that says so), of the two reranking MAPs
    and of the two transfer accuracies; the last two only if both tasks were scored."""
    results = [result for task in scored for result in task.scores.results]
    seconds = {task.task: task.seconds for task in scored}
    if mean := sts.mean_of_seven(results):
        yield Scored(mean.task, Scores([mean], {}), sum(seconds.get(task, 0) for task in sts.SEVEN))
    for suite, metric in (("reranking", "map"), ("transfer", "accuracy")):
        first = {result.task: result for result in reversed(results)  # the headline; not of a file of --reranking
                 if result.metric == metric and result.split != "heldout"}
        if set(SUITES[suite]) <= first.keys():
            headlines = [first[task] for task in SUITES[suite]]
            mean = sum(result.value for result in headlines) / len(headlines)
            result = Result(f"{suite}_mean", headlines[0].split, metric, mean, len(headlines))
            yield Scored(result.task, Scores([result], {}), sum(seconds[task] for task in SUITES[suite]))
