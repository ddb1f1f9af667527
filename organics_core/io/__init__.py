"""Files: circuits, checkpoints."""
