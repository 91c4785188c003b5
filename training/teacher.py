"""The frozen teacher of a distillation: its embeddings of a batch, stored beside the data or computed in each step.

Legend: P packing blocks in the global batch, m examples per block, n stored texts per example, D_t width of the
teacher's embeddings.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from data.shards import find_prompts
from data.teacher_store import find_teacher
from data.tokenizer import TextTokenizer, load_tokenizer
from inference.embedding import unit_length
from inference.encoder import Encoder
from model.files.weights import load_model, model_fingerprint
from model.parameters import declare
from model.pooling import embed
from sharding.layout import SPLIT, Layout, place, state_spec
from training.feed import Fed
from training.gradient_caching import encode_in_parts
from training.objectives.mse import principal_axes
from training.settings import TrainConfig


class Teacher(NamedTuple):
    width: int  # D_t
    fingerprint: str
    stored: bool  # beside the data, where the loader reads them
    of_batch: Callable[[Fed], jax.Array]  # [P, n m, D_t] float32, on the mesh; not normalised
    encode: Callable[[list[str]], np.ndarray]  # n texts -> [n, D_t] float32; not normalised


def set_up_teacher(
    config: TrainConfig, layout: Layout, tokenizer: TextTokenizer, datasets: Iterable[str]
) -> Teacher:
    """Loads the teacher and decides where its embeddings of the batches come from.

    Raises:
      ValueError: no stored embeddings, and the teacher has another tokenizer than the data was prepared with, or the
        data has prompts, which a teacher does not read.
    """
    loaded = load_model(config.teacher.teacher)
    pooling = config.teacher.teacher_pooling or loaded.config.pooling
    model = dataclasses.replace(loaded.config, pooling=pooling, normalize=False, default_prompt_name="")
    teachers_tokenizer = load_tokenizer(loaded.tokenizer_folder)
    encoder = functools.cache(lambda: Encoder(model, loaded.parameters, teachers_tokenizer, dtype=config.model.dtype))
    fingerprint, reason = model_fingerprint(model, loaded.parameters, teachers_tokenizer), ""
    if config.teacher.teacher_embeddings != "computed":
        try:
            find_teacher(config.data.data_dir, datasets, fingerprint)
            logging.info("teacher: embeddings stored beside the data (%s)", fingerprint)
            return Teacher(model.embedding_size, fingerprint, True, lambda fed: fed.batch.targets,
                           lambda texts: encoder().encode(texts))
        except ValueError as error:
            if config.teacher.teacher_embeddings == "stored":
                raise
            reason = f"{error}. And "
    prompts = find_prompts(config.data.data_dir, datasets)
    if any(prompts.values()) or teachers_tokenizer.fingerprint != tokenizer.fingerprint:
        obstacle = f"the data has the prompts {prompts}, which are the student's" if any(prompts.values()) else (
            f"the teacher {config.teacher.teacher} has another tokenizer than the student")
        raise ValueError(f"{reason}the teacher cannot embed each batch, because {obstacle}: run `main.py teach "
                         f"--teacher={config.teacher.teacher} --data_dir={config.data.data_dir} --source_dir=DIR`")
    if config.batch.max_length > model.encoder.max_positions:
        raise ValueError(f"max_length={config.batch.max_length} is more than the teacher's position table holds, "
                         f"{model.encoder.max_positions}: give a smaller --max_length")
    logging.info("teacher: computes its embeddings in each step")
    specs = jax.tree.map(state_spec("parameters", layout), declare(model))
    parameters = place(loaded.parameters, specs, layout.mesh)

    def on_each_device(parameters, packed):
        def encode_part(parameters, part, first_block):
            return embed(parameters, model, part, dtype=jnp.dtype(config.model.dtype), first_block=first_block)

        return encode_in_parts(encode_part, parameters, packed, config.batch.encode_blocks or packed.tokens.shape[0])

    run = jax.jit(jax.shard_map(
        on_each_device, mesh=layout.mesh, in_specs=(specs, SPLIT), out_specs=SPLIT, check_vma=False,
    ))
    return Teacher(model.embedding_size, fingerprint, False, lambda fed: run(parameters, fed.batch.packed),
                   lambda texts: encoder().encode(texts))


def fit_projection(
    config: TrainConfig, teacher: Teacher, feed: Iterable[Fed], num_examples: int, mesh: Mesh
) -> np.ndarray:
    """V^T [D_t, teacher_pca]: the principal axes of the teacher's embeddings of the first texts of the first batches.

    Raises ValueError for more axes than the sample or the teacher's embeddings allow.
    """
    wanted, sample = min(config.teacher.pca_sample, num_examples), []
    for fed in feed:
        targets = multihost_utils.process_allgather(teacher.of_batch(fed), tiled=True)
        firsts = targets[:, : config.batch.global_batch_size // config.batch.packing_blocks]
        sample.append(firsts.reshape(-1, teacher.width))
        if sum(map(len, sample)) >= wanted:
            break
    sample = np.concatenate(sample)[:wanted]
    if config.teacher.normalize_teacher:
        sample = unit_length(sample)
    projection, share = principal_axes(sample, config.teacher.teacher_pca, mesh)
    logging.info("teacher_pca=%d: the axes hold %.2f%% of the variance of %d embeddings of %d numbers",
                 config.teacher.teacher_pca, 100 * share, len(sample), teacher.width)
    return projection
