"""The local engine: policy, optimizer and checkpoints of a transformers model in one process, on one device."""
