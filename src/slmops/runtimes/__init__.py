"""Inference runtimes, one file each, behind one Protocol; a child process runs the model."""
