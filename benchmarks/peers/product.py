"""PyTorch's part of the machine's matrix-product rate (benchmarks/machine.py).

Runs in the peer's environment from its own folder (see peer.py). For each {"seconds"} line it does passes over all
products for so long and answers {"passes_per_second"}.
"""

import json
import sys
import time

import torch

arguments = json.loads(sys.argv[1])
torch.set_num_threads(arguments["threads"])
dtype = getattr(torch, arguments["dtype"])
operands = [(torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype))
            for rows, inner, columns in arguments["products"]]


def one_pass():
    for left, right in operands:
        left @ right


one_pass()
print(json.dumps({"versions": {"torch": torch.__version__}}), flush=True)
for line in sys.stdin:
    seconds = json.loads(line)["seconds"]
    begin, passes = time.perf_counter(), 0
    while not passes or time.perf_counter() - begin < seconds:
        one_pass()
        passes += 1
    print(json.dumps({"passes_per_second": passes / (time.perf_counter() - begin)}), flush=True)
