"""What becomes of circuits: classification, phase diagrams, several fixed points, boundaries of stability."""
