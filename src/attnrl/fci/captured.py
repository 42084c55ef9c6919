"""The result of a forward pass under capture: FCI, lookups and step-to-step attention of each layer and head.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnrl.fci.attention import LayerAttention, accumulating, panels
from attnrl.fci.columns import column_sums
from attnrl.fci.layout import StepLayout
from attnrl.fci.lookups import layer_lookups
from attnrl.fci.spec import CaptureSpec, FciUnsupportedError
from attnrl.method.influence import forward_context_influence
from attnrl.method.measures import Measure


@dataclass
class Capture:
    """Results of one forward pass, filled layer by layer.

    Attributes:
        spec: the sequences, steps and options of the capture.
        layer_kinds: kind of each layer of the model as named in the model's config, by layer index.
        influence_HS: FCI of each layer by layer index, the steps of all sequences one after another (eq. 5).
        lookups_HS: with ``spec.lookups``, the lookups of each layer by layer index, in the shape of ``influence_HS``.
        alpha_HSS: with ``spec.matrix``, the step-to-step attention of each sequence (eq. 4), by layer index.
    """

    spec: CaptureSpec
    layer_kinds: Sequence[str]
    influence_HS: dict[int, Tensor] = field(default_factory=dict)
    lookups_HS: dict[int, Tensor] = field(default_factory=dict)
    alpha_HSS: dict[int, list[Tensor]] = field(default_factory=dict)
    _running: bool = field(default=False, repr=False)
    _attended: set[int] = field(default_factory=set, repr=False)
    _layouts: dict[tuple[int, int, torch.device], StepLayout] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.spec.layers is not None and max(self.spec.layers) >= len(self.layer_kinds):
            raise ValueError(
                f"layers: index {max(self.spec.layers)} is out of range for a model of {len(self.layer_kinds)} layers"
            )

    def begin(self) -> None:
        """Start a forward pass: discard the results of the previous forward pass."""
        self._attended.clear()
        self.influence_HS.clear()
        self.lookups_HS.clear()
        self.alpha_HSS.clear()
        self._running = True

    def end(self) -> None:
        """End the forward pass: ignore the layers that gradient checkpointing computes again in the backward pass."""
        self._running = False

    def influence(self) -> list[Tensor]:
        """Return the FCI of each step at each layer and head: for each sequence a tensor [L, H, S].

        Layers are in ascending order of their index, heads in the order of the spec. Values are fp32 (fp64 for fp64
        models), on the device of the first layer.

        Raises:
            FciUnsupportedError: no layer was captured, the forward pass was interrupted, the number of heads differs
                between layers (then choose layers), or the model mixes packed sequences.
        """
        return self._by_sequence(self.influence_HS)

    def lookups(self) -> list[Tensor]:
        """Return the number of lookups of each step at each layer and head, in the shape of :meth:`influence`.

        Raises:
            FciUnsupportedError: as :meth:`influence`.
            ValueError: the spec has ``lookups=False``.
        """
        if not self.spec.lookups:
            raise ValueError("lookups were not captured: set CaptureSpec(lookups=True)")
        return self._by_sequence(self.lookups_HS)

    def of_steps(self, measure: Measure) -> list[Tensor]:
        """Return one number per step: for each sequence a tensor [S], with the dtype of :meth:`influence`.

        Args:
            measure: the signal of each head and the reduction over layers and heads.

        Raises:
            FciUnsupportedError, ValueError: as :meth:`lookups`.
        """
        signal = self.lookups() if measure.uses_lookups else self.influence()
        return [measure.reduce(values_LHS) for values_LHS in signal]

    def _by_sequence(self, layers: dict[int, Tensor]) -> list[Tensor]:
        counts = [len(starts) for starts in self.spec.step_starts]
        return list(torch.split(self._stack(layers), counts, dim=-1))

    def step_matrices(self) -> list[Tensor]:
        """Return the step-to-step attention alpha (eq. 4), later by earlier step: for each sequence [L, H, S, S].

        Raises:
            FciUnsupportedError: as :meth:`influence`.
            ValueError: the spec has ``matrix=False``.
        """
        if not self.spec.matrix:
            raise ValueError("the step-to-step attention was not captured: set CaptureSpec(matrix=True)")
        return [
            self._stack({index: alphas[sequence] for index, alphas in self.alpha_HSS.items()})
            for sequence in range(len(self.spec.lengths))
        ]

    @property
    def layers(self) -> list[int]:
        """Indices of the captured layers, in the order of the results."""
        return sorted(self.influence_HS)

    @property
    def skipped(self) -> dict[int, str]:
        """Kind of each requested layer without softmax attention (linear attention, a state space), by index."""
        wanted = range(len(self.layer_kinds)) if self.spec.layers is None else self.spec.layers
        return {index: self.layer_kinds[index] for index in wanted if index not in self._attended}

    def layout(self, rows: int, tokens: int, device: torch.device) -> StepLayout:
        """Return the layout of a forward pass of ``rows`` rows of ``tokens`` tokens, padding included.

        Raises:
            ValueError: the sequences of the spec do not fit the rows.
        """
        place = (rows, tokens, device)
        if place not in self._layouts:
            spans, packed = self.spec.spans, self.spec.packed
            needed = max((span.stop for span in spans), default=0)
            if rows != self.spec.rows or needed > tokens or (packed and needed < tokens):
                raise ValueError(
                    f"the forward pass has {rows} rows of {tokens} tokens, the capture spec has "
                    f"{'packed sequences' if packed else 'rows'} of {list(self.spec.lengths)} tokens"
                )
            self._layouts[place] = StepLayout.build(spans, rows, tokens, self.spec.delta, device, self.spec.parents)
        return self._layouts[place]

    @torch.no_grad()
    def add(self, index: int, layer: LayerAttention, lse_BHT: Tensor, layout: StepLayout) -> None:
        """Add the results of one layer, if the spec includes the layer.

        Args:
            index: index of the layer.
            layer: the layer's attention.
            lse_BHT: logsumexp of each query's scores in nats.
            layout: the sequences and their steps.

        Raises:
            FciUnsupportedError: the layer attends a second time.
            ValueError: the spec has a head index out of range.
        """
        if not self._running:
            return
        if index in self._attended:
            raise FciUnsupportedError(f"layer {index} attends more than once in a forward pass, and has no single FCI")
        self._attended.add(index)
        if self.spec.layers is not None and index not in self.spec.layers:
            return
        if self.spec.heads is not None:
            if max(self.spec.heads) >= lse_BHT.shape[1]:
                raise ValueError(
                    f"heads: index {max(self.spec.heads)} is out of range: layer {index} has {lse_BHT.shape[1]} heads"
                )
            layer, lse_BHT = layer.of_heads(self.spec.heads), lse_BHT[:, list(self.spec.heads)]
        if self.spec.lookups and layout.steps:
            self.lookups_HS[index] = layer_lookups(layer, lse_BHT, layout, self.spec.delta)
        if self.spec.matrix:
            self.alpha_HSS[index] = layer_step_attention(layer, layout)
            influences = [forward_context_influence(alpha_HSS, self.spec.delta) for alpha_HSS in self.alpha_HSS[index]]
            self.influence_HS[index] = torch.cat(influences, dim=-1)
            return
        if layout.steps == 0:
            return
        columns_BHT = column_sums(
            layer.query_BHTD,
            layer.key_BGTD,
            lse_BHT,
            layout.weight_BT,
            layout.lo_BT,
            layout.hi_BT(layer.window),
            scaling=layer.scaling,
            softcap=layer.softcap,
        )
        self.influence_HS[index] = layout.step_means(columns_BHT)

    def _stack(self, layers: dict[int, Tensor]) -> Tensor:
        if self._running:
            raise FciUnsupportedError("the forward pass under capture was interrupted")
        if not layers:
            kinds = ", ".join(sorted(set(self.layer_kinds))) or "unknown"
            raise FciUnsupportedError(
                f"no attention layer was captured (kinds of layers: {kinds}): no requested layer calls softmax "
                "attention through transformers' AttentionInterface, or no forward pass ran"
            )
        kinds_by_index = enumerate(self.layer_kinds)
        mixing = {index: kind for index, kind in kinds_by_index if kind == "hybrid" or index not in self._attended}
        if self.spec.packed and mixing:
            kinds = ", ".join(sorted(set(mixing.values())))
            raise FciUnsupportedError(
                f"{len(mixing)} of {len(self.layer_kinds)} layers ({kinds}) carry a state along the row, which mixes "
                "packed sequences"
            )
        ordered = [layers[index] for index in sorted(layers)]
        if len({len(layer) for layer in ordered}) > 1:
            heads = {index: len(layers[index]) for index in sorted(layers)}
            raise FciUnsupportedError(f"the number of heads differs between layers; choose layers of one kind: {heads}")
        return torch.stack([layer.to(ordered[0].device) for layer in ordered])


def layer_step_attention(layer: LayerAttention, layout: StepLayout) -> list[Tensor]:
    """Return the step-to-step attention alpha_HSS of each sequence (eq. 4), from a few attention rows at a time."""
    alphas = []
    first = 0
    for span in layout.spans:
        steps_T, weight_T = layout.step_BT[span.row] - first, layout.weight_BT[span.row]
        index_S = torch.arange(len(span.steps), device=steps_T.device)
        average_ST = ((steps_T == index_S[:, None]) * weight_T).to(accumulating(layer.query_BHTD))
        alpha_HSS = average_ST.new_zeros(layer.query_BHTD.shape[1], len(span.steps), len(span.steps))
        for panel in panels(layer, span):
            queries, keys = slice(panel.start, panel.stop), slice(panel.left, panel.stop)
            alpha_HSS += average_ST[:, queries] @ (panel.probs_Hqk @ average_ST[:, keys].mT)
        alphas.append(alpha_HSS)
        first += len(span.steps)
    return alphas
