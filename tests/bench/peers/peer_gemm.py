"""Answers each line `m k n a_transposed b_transposed seconds` with the GFLOP/s of torch's product."""
import sys
import time

import torch

torch.set_num_threads(int(sys.argv[1]))
for line in sys.stdin:
    m, k, n, a_transposed, b_transposed = map(int, line.split()[:5])
    seconds = float(line.split()[5])
    a = torch.randn(k, m).T if a_transposed else torch.randn(m, k)
    b = torch.randn(n, k).T if b_transposed else torch.randn(k, n)
    a @ b
    runs, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        a @ b
        runs += 1
    print(2e-9 * m * k * n * runs / (time.perf_counter() - began), flush=True)
