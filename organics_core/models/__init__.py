"""Circuit families: each in one file, on top of everything the core offers to a model."""
