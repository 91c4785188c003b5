"""Peer side of train_vs_sentence_transformers and of grad_cache: SentenceTransformerTrainer, some seconds at a time.

Runs in the peer's environment from its own folder (see peer.py). Prints one line once the trainer is built, then waits
in the trainer's `on_step_end` for {"seconds": s} lines on stdin; each runs whole steps for s seconds and answers
{"pairs", "seconds", "real_tokens", "padded_tokens", "squared_lengths"}; the last is the sum of the texts' squared
numbers of tokens. {"stop": true} ends it.
"""

import json
import os
import sys
import time

arguments = json.loads(sys.argv[1])
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # libraries print to stdout; answers keep the pipe to themselves

import accelerate  # noqa: E402
import datasets  # noqa: E402
import sentence_transformers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from sentence_transformers import (  # noqa: E402
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import (  # noqa: E402
    CachedMultipleNegativesSymmetricRankingLoss,
    MultipleNegativesSymmetricRankingLoss,
)

torch.set_num_threads(arguments["threads"])
datasets.disable_progress_bars()


class BlockTimer(transformers.TrainerCallback):
    """Holds the trainer between blocks; the first block begins before the first step."""

    def __init__(self, collator):
        self.collator = collator
        self.steps = 0

    def next_block(self, control):
        order = json.loads(sys.stdin.readline() or '{"stop": true}')
        if order.get("stop"):
            control.should_training_stop = True
            return
        self.collator.counts = dict.fromkeys(self.collator.counts, 0)
        self.steps = 0
        self.wanted_seconds = order["seconds"]
        self.begin = time.perf_counter()

    def on_train_begin(self, args, state, control, **_):
        self.next_block(control)

    def on_step_end(self, args, state, control, **_):
        self.steps += 1
        seconds = time.perf_counter() - self.begin
        if seconds < self.wanted_seconds:
            return
        answer = {
            "pairs": self.steps * args.per_device_train_batch_size,
            "seconds": seconds,
            **self.collator.counts,
        }
        print(json.dumps(answer), file=answers)
        self.next_block(control)


class CountingCollator:
    """The trainer's own collator, counting the tokens of the batches it makes (the trainer may fetch one ahead)."""

    def __init__(self, collator):
        self.collator = collator
        self.counts = dict.fromkeys(("real_tokens", "padded_tokens", "squared_lengths"), 0)

    def __call__(self, features):
        batch = self.collator(features)
        for name, value in batch.items():
            if name.endswith("attention_mask"):
                self.counts["real_tokens"] += int(value.sum())
                self.counts["padded_tokens"] += value.numel()
                self.counts["squared_lengths"] += int((value.sum(dim=1) ** 2).sum())
        return batch

    def __getattr__(self, name):
        return getattr(self.collator, name)


with open(arguments["pairs"], encoding="utf-8") as file:
    pairs_by_dataset = json.load(file)  # {dataset: [[anchor, positive], ...]}
train_dataset = datasets.DatasetDict({
    name: datasets.Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [b for _, b in pairs]})
    for name, pairs in pairs_by_dataset.items()
})
if len(train_dataset) == 1:
    train_dataset = next(iter(train_dataset.values()))

model = SentenceTransformer(arguments["model"], device="cpu")
model.max_seq_length = arguments["max_length"]
if mini_batch_size := arguments.get("mini_batch_size"):  # gradient caching
    loss = CachedMultipleNegativesSymmetricRankingLoss(model, mini_batch_size=mini_batch_size)
else:
    loss = MultipleNegativesSymmetricRankingLoss(model)
trainer = SentenceTransformerTrainer(
    model=model,
    args=SentenceTransformerTrainingArguments(
        output_dir="trainer",
        per_device_train_batch_size=arguments["batch_size"],
        max_steps=1_000_000,
        learning_rate=2e-5,
        warmup_steps=500,
        bf16=arguments["bf16"],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=arguments["seed"],
    ),
    train_dataset=train_dataset,
    loss=loss,
)
trainer.data_collator = CountingCollator(trainer.data_collator)
trainer.add_callback(BlockTimer(trainer.data_collator))
versions = {module.__name__: module.__version__ for module in (torch, transformers, sentence_transformers, accelerate)}
print(json.dumps({"versions": versions, "threads": torch.get_num_threads()}), file=answers)
trainer.train()
