"""Samplers: the local sampler and vLLM."""
