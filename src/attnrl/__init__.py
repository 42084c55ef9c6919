"""AttnRL: process-supervised reinforcement learning that uses the model's own attention as a compass."""

__version__ = "0.1.0"
