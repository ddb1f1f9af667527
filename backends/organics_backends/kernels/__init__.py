"""Fast kernels of single computations, registered by kind and library; each is checked against the core."""
