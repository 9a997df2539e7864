"""Speed and correctness of every op beside the PyTorch code it replaces: `python -m benchmarks --help`.
One file an op (cases, peers, cost); harness.py, measure.py and table.py know no op by name."""
