"""The tests' networks are tiny: one thread is faster than the coordination of several."""
import torch

torch.set_num_threads(1)
