"""Peer side of quality_vs_sentence_transformers: SentenceTransformerTrainer until a deadline, then save.

Runs in the peer's environment from its own folder (see peer.py). The learning rate rises and falls by the share of the
time that has passed. Prints {"pairs", "seconds", "versions"} at the end; the model is in `output`.
"""

import json
import os
import sys
import time

arguments = json.loads(sys.argv[1])
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # libraries print to stdout; answers keep the pipe to themselves

import datasets  # noqa: E402
import sentence_transformers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from sentence_transformers import (  # noqa: E402
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesSymmetricRankingLoss  # noqa: E402
from sentence_transformers.sentence_transformer.training_args import (  # noqa: E402
    BatchSamplers,
    MultiDatasetBatchSamplers,
)

torch.set_num_threads(arguments["threads"])


class DeadlineTrainer(SentenceTransformerTrainer):
    """Schedules by the clock: linear warm-up, then linear decay to 0 at the deadline."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        begin = time.time()

        def factor(_):
            share = (time.time() - begin) / (arguments["deadline"] - begin)
            warmup = arguments["warmup_share"]
            return max(0.0, min(share / warmup, (1 - share) / (1 - warmup)))

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler


class StopAtDeadline(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = time.time() >= arguments["deadline"]


with open(arguments["pairs"], encoding="utf-8") as file:
    pairs_by_dataset = json.load(file)  # {dataset: [[anchor, positive], ...]}
train_dataset = datasets.DatasetDict({
    name: datasets.Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [b for _, b in pairs]})
    for name, pairs in pairs_by_dataset.items()
})
model = SentenceTransformer(arguments["model"], device="cpu")
encode_length, model.max_seq_length = model.max_seq_length, arguments["max_length"]
trainer = DeadlineTrainer(
    model=model,
    args=SentenceTransformerTrainingArguments(
        output_dir="trainer",
        per_device_train_batch_size=arguments["batch_size"],
        max_steps=1_000_000,  # the deadline comes first
        learning_rate=arguments["learning_rate"],
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        multi_dataset_batch_sampler=MultiDatasetBatchSamplers.PROPORTIONAL,
        bf16=arguments["bf16"],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=arguments["seed"],
    ),
    train_dataset=train_dataset,
    loss=MultipleNegativesSymmetricRankingLoss(model),
    callbacks=[StopAtDeadline()],
)
trainer.train()
pairs, seconds = trainer.state.global_step * arguments["batch_size"], time.time() - arguments["started"]
model.max_seq_length = encode_length
model.save(arguments["output"], create_model_card=False)
versions = {module.__name__: module.__version__ for module in (torch, transformers, sentence_transformers)}
print(json.dumps({"pairs": pairs, "seconds": seconds, "versions": versions}), file=answers)
