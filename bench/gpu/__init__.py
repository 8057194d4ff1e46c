"""How fast emitted kernels are on a GPU, beside other packages' own; `python -m bench.gpu`."""
