"""Update rules as classes of `torch.optim.Optimizer`: the text of `optimizers.py`."""
