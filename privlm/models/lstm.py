"""An LSTM whose gates are Linear layers: per-record gradients need layers that hooks see, which torch's LSTM hides."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LSTMCell(nn.Module):
    """One direction of one layer (Hochreiter and Schmidhuber, 1997), unrolled over the sequence."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.from_input = nn.Linear(input_size, 4 * hidden_size)
        self.from_hidden = nn.Linear(hidden_size, 4 * hidden_size)

    def forward(self, x_BTd: Tensor) -> Tensor:
        """Hidden states [B, T, h], from zero states before the first step."""
        hidden_Bh = cell_Bh = x_BTd.new_zeros(len(x_BTd), self.from_hidden.in_features)
        outputs = []
        for input_gates in self.from_input(x_BTd).unbind(1):
            ingoing, forget, candidate, outgoing = (input_gates + self.from_hidden(hidden_Bh)).chunk(4, dim=-1)
            cell_Bh = forget.sigmoid() * cell_Bh + ingoing.sigmoid() * candidate.tanh()
            hidden_Bh = outgoing.sigmoid() * cell_Bh.tanh()
            outputs.append(hidden_Bh)
        return torch.stack(outputs, dim=1)


class UnrolledLSTM(nn.Module):
    """Equals `torch.nn.LSTM(..., batch_first=True)` with the same weights, and can be trained under privacy."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        self.num_directions = 2 if bidirectional else 1
        sizes = [input_size] + [self.num_directions * hidden_size] * (num_layers - 1)
        self.cells = nn.ModuleList(LSTMCell(size, hidden_size) for size in sizes for _ in range(self.num_directions))

    def forward(self, x_BTd: Tensor) -> Tensor:
        """Hidden states of the last layer, [B, T, h], or [B, T, 2h] where bidirectional."""
        for first in range(0, len(self.cells), self.num_directions):
            outputs = [self.cells[first](x_BTd)]
            if self.num_directions == 2:
                outputs.append(self.cells[first + 1](x_BTd.flip(1)).flip(1))
            x_BTd = torch.cat(outputs, dim=-1)
        return x_BTd

    @torch.no_grad()
    def copy_weights(self, lstm: nn.LSTM) -> UnrolledLSTM:
        """Takes over the weights of an LSTM of the same sizes, with biases; returns itself."""
        weights = iter(lstm.parameters())  # of each layer and direction: input, hidden weights, input, hidden biases
        for cell in self.cells:
            assert isinstance(cell, LSTMCell)
            gates = cell.from_input, cell.from_hidden
            for copied in (*(layer.weight for layer in gates), *(layer.bias for layer in gates)):
                copied.copy_(next(weights))
        return self
