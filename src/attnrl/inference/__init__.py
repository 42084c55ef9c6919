"""Samplers: transformers in this process, or a vLLM engine; `registry.SAMPLERS` lists them by name."""
