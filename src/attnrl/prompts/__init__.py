"""Prompts as the model sees them: suffix, system prompt, chat template, special tokens. Map of the modules:

- :mod:`attnrl.prompts.settings`: the settings of prompts, the same in training and evaluation;
- :mod:`attnrl.prompts.sources`: find and check the text of a chat template, without rendering;
- :mod:`attnrl.prompts.template`: render with a chat template, within a time limit, and probe the template's features;
- :mod:`attnrl.prompts.encoding`: token ids of rendered text: the start token, special tokens as plain text;
- :mod:`attnrl.prompts.renderer`: :class:`PromptRenderer`, the only way from a problem to a prompt.
"""
