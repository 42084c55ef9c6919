"""The local engine: one process, one device, a Hugging Face transformers model."""
