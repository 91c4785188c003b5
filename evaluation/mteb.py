"""Runs tasks of MTEB with the real mteb, and writes the results in the form that its leaderboard takes.

    pip install -e ".[mteb]"
    python -m evaluation.mteb --model=MODEL --tasks=STSBenchmark,NFCorpus [--languages=eng] --output_folder=DIR

DIR/results/ORGANISATION__MODEL/REVISION/ gets TASK.json, model_meta.json and run_settings.jsonl; the revision is the
fingerprint of the model. Tasks whose results of this revision are already there are not run again. The fingerprint does
not cover a model's prompts: use another folder if they change.

mteb fetches each task's data from the Hugging Face hub. The encoder runs on all devices of this process, in float32.
"""

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from flags import REQUIRED, flag, run_program
from sharding.host import keep_freed_memory

if TYPE_CHECKING:  # mteb and torch are not dependencies, and JAX starts only after the flags are checked
    import torch
    from mteb import AbsTask
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.results import ModelResult
    from mteb.types import Array, BatchedInput, PromptType
    from torch.utils.data import DataLoader

    from inference.encoder import Encoder

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # in the order of sentence-transformers' encode_document


@dataclasses.dataclass(frozen=True)
class RunMtebConfig:
    model: str = flag(REQUIRED, "MODEL: a folder (ours, Hugging Face's, sentence-transformers', or the WORKDIR of a "
                                "training run) or a hub id")
    tasks: tuple[str, ...] = flag((), "names of mteb's tasks, comma-separated")
    languages: tuple[str, ...] = flag((), "languages of multilingual tasks, such as eng or eng-Latn; empty: all")
    output_folder: str = flag(REQUIRED, "folder in which results/ is written")
    model_name: str = flag("", "ORGANISATION/MODEL in the results; empty: the hub id, or allpairs/FOLDER")


class MtebEncoder:
    """mteb's EncoderProtocol (mteb 2) around our encoder."""

    def __init__(self, encoder: "Encoder", model_name: str):
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        self.encoder = encoder
        self.prompts = dict(encoder.config.prompts)
        self.mteb_model_meta = ModelMeta.create_empty({
            "name": model_name,
            "revision": encoder.fingerprint(),
            "max_tokens": encoder.config.max_length,
            "embed_dim": encoder.config.embedding_size,
            "similarity_fn_name": ScoringFunction.COSINE,
            "framework": ["JAX"],
            "use_instructions": bool(self.prompts),
        })

    def encode(
        self,
        inputs: "DataLoader[BatchedInput]",
        *,
        task_metadata: "TaskMetadata",
        hf_split: str,
        hf_subset: str,
        prompt_type: "PromptType | None" = None,
        **options: Any,
    ) -> np.ndarray:  # [n, D] float32
        """Embeddings of the texts of all batches; the encoder sorts and packs them itself."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self.encoder.encode(
            texts, prompt_name=self._prompt_name(task_metadata, prompt_type),
            progress=options.get("show_progress_bar", True),
        )

    def _prompt_name(self, task_metadata: "TaskMetadata", prompt_type: "PromptType | None") -> str | None:
        """The model's prompt for a task, as in mteb, else for a query or document, as in sentence-transformers.

        None, for the model's default prompt, if the task has neither.
        """
        from mteb.models.abs_encoder import get_prompt_name

        if name := get_prompt_name(self.prompts, task_metadata, prompt_type):
            return name
        if prompt_type is None:
            return None
        candidates = DOCUMENT_PROMPTS if prompt_type.value == "document" else ("query",)
        return next((name for name in candidates if name in self.prompts), "")

    def similarity(self, embeddings1: "Array", embeddings2: "Array") -> "torch.Tensor":  # [n, D], [M, D] -> [n, M]
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: "Array", embeddings2: "Array") -> "torch.Tensor":  # [n, D] twice -> [n]
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


def import_mteb() -> None:
    """Imports mteb and what it imports later, without this repository on sys.path; ValueError if it is not installed.

    When transformers is imported, it looks for Hugging Face's package `kernels` and would find ours, as `python -m`
    puts the repository first on the path. So mteb is imported before any of our modules that import `kernels`.
    """
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if pathlib.Path(entry).resolve() != REPOSITORY]
    try:
        import mteb  # noqa: F401
        import sentence_transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install -e '.[mteb]'") from error
    finally:
        sys.path[:] = path


def named_tasks(config: RunMtebConfig) -> list["AbsTask"]:
    """The tasks of --tasks. Raises ValueError for an unknown task and for one in none of the languages."""
    import mteb

    tasks = []
    for name in config.tasks:
        try:
            tasks.append(mteb.get_task(name, languages=list(config.languages) or None))
        except (KeyError, ValueError) as error:
            raise ValueError(f"--tasks={name} --languages={','.join(config.languages)}: {error.args[0]}") from error
    return tasks


def run_tasks(encoder: MtebEncoder, tasks: list["AbsTask"], output_folder: str) -> "ModelResult":
    """Scores the tasks that have no result in output_folder yet, and writes their results there."""
    import mteb

    return mteb.evaluate(encoder, tasks, cache=mteb.ResultCache(output_folder))


def run_mteb(config: RunMtebConfig) -> None:
    if not config.tasks:
        raise ValueError("nothing to score: give --tasks, for example --tasks=STSBenchmark")
    folder = pathlib.Path(config.model)
    name = config.model_name or (f"allpairs/{folder.resolve().name}" if folder.is_dir() else config.model)
    if name.count("/") != 1:
        raise ValueError(f"the model's name in the results is ORGANISATION/MODEL, not {name}: give --model_name")
    import_mteb()
    tasks = named_tasks(config)

    from inference.encoder import Encoder

    result = run_tasks(MtebEncoder(Encoder.load(config.model), name), tasks, config.output_folder)
    for task in result.task_results:
        print(f"{task.task_name:40s}  {100 * task.get_score():7.2f}")


if __name__ == "__main__":
    keep_freed_memory()
    run_program("python -m evaluation.mteb", RunMtebConfig, run_mteb, sys.argv[1:], description=__doc__)
