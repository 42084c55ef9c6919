"""Experiments of the paper beside training: what they measure is in the docs, what they found too."""
