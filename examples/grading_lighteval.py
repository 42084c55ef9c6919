"""The grader as a metric of lighteval (checked with lighteval 0.13.0).

    LightevalTaskConfig(name="my_math", metrics=[math_answer], ...)

A list of golds (``gold_index`` of several choices) is a list of accepted answers. lighteval calls the metric once per
problem with all samples of the model: the score is the share of correct samples.
"""

from __future__ import annotations

from statistics import fmean

from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc, SamplingMethod

from attnrl.grading import grade_batch


class MathAnswer(SampleLevelComputation):
    """The share of correct samples of a problem."""

    def compute(self, doc: Doc, model_response: ModelResponse, **_: object) -> float:
        """Grade every sample against the golds of the problem."""
        texts = model_response.final_text
        return fmean(
            grade.reward for grade in grade_batch(texts, [doc.get_golds()] * len(texts), [doc.query] * len(texts))
        )


math_answer = SampleLevelMetric("math_answer", True, SamplingMethod.GENERATIVE, MathAnswer(), fmean)
