"""Peer side of contrastive_gpu: loss and gradients by Inf-CL's Triton kernels (PyPI: inf-cl), on one GPU.

    mean_i [lse_j(s <q_i, k_j>) - s <q_i, k_i>] + mean_i [lse_j(s <k_i, q_j>) - s <q_i, k_i>],   i < b, j < N

What Inf-CL computes on one device of a larger batch: its b queries against all N keys, and its b keys against all N
queries, each with the gradients of both sides. That is 20 b N D multiply-adds, in TF32 whatever the operands' dtype; a
single device's loss is the same with b = N. Source: Cheng et al. 2024 (2410.17243).

Runs in the peer's environment from its own folder (see peer.py). Ready when the operands are on the GPU, it answers
  {"order": "result"}         {"loss", "gradient_norms" of q [b], K [N], k [b] and Q [N], "temporary_bytes"}
  {"order": "time", "calls"}  {"seconds"} of that many calls in a row, each with its gradients
"""

import importlib.metadata
import json
import os
import sys
import time

arguments = json.loads(sys.argv[1])
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # libraries print to stdout; answers keep the pipe to themselves

import numpy as np  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():
    sys.exit(f"Inf-CL's kernels run on a CUDA GPU only, and torch {torch.__version__} finds none")

import inf_cl  # noqa: E402


def on_gpu(path: str) -> torch.Tensor:
    """The bfloat16 array whose bits are in the file."""
    return torch.from_numpy(np.load(path)).view(torch.bfloat16).cuda()


rows, scale = arguments["rows"], arguments["scale"]
all_queries, all_keys = [on_gpu(arguments[name]).requires_grad_() for name in ("queries", "keys")]
queries, keys = [array[:rows].detach().clone().requires_grad_() for array in (all_queries, all_keys)]
operands = queries, all_keys, keys, all_queries
width = queries.shape[1]
head_dim = next((size for size in (256, 128, 64, 32, 16) if width % size == 0), None)  # 256 is its default
if head_dim is None:
    sys.exit(f"Inf-CL takes a width that is a multiple of 16, not {width}")


def loss_and_gradients():
    loss = sum(inf_cl.cal_flash_loss(own, others, scale=scale, head_dim=head_dim).mean()
               for own, others in ((queries, all_keys), (keys, all_queries)))
    return loss.detach(), torch.autograd.grad(loss, operands)


def result() -> dict:
    """The first call compiles the kernels."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss, gradients = loss_and_gradients()
    temporary = torch.cuda.max_memory_allocated() - before - sum(gradient.nbytes for gradient in gradients)
    return {"loss": loss.item(), "gradient_norms": [gradient.float().norm().item() for gradient in gradients],
            "temporary_bytes": temporary}


def timed(calls: int) -> dict:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        loss_and_gradients()
    torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - begin}


versions = {name: importlib.metadata.version(name) for name in ("torch", "triton", "inf-cl")}
print(json.dumps({"versions": versions, "device": torch.cuda.get_device_name()}), file=answers)
for line in sys.stdin:
    order = json.loads(line)
    print(json.dumps(result() if order["order"] == "result" else timed(order["calls"])), file=answers)
