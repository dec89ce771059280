import torch

# These models are so small that threads only wait for one another, badly so when the cores are shared.
torch.set_num_threads(1)
