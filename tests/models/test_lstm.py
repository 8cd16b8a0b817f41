"""The unrolled LSTM against torch's, and under the privacy engine."""

import pytest
import torch
from torch import Tensor, nn

from privlm.models.lstm import UnrolledLSTM
from privlm.privacy.engine import PrivacyEngine


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_outputs_equal_those_of_torch(num_layers: int, bidirectional: bool) -> None:
    torch.manual_seed(0)
    reference = nn.LSTM(5, 7, num_layers, batch_first=True, bidirectional=bidirectional)
    unrolled = UnrolledLSTM(5, 7, num_layers, bidirectional).copy_weights(reference)
    x = torch.randn(3, 11, 5)
    torch.testing.assert_close(unrolled(x), reference(x)[0])


def test_clipped_sum_equals_one_backward_pass_per_record() -> None:
    torch.manual_seed(0)
    model = UnrolledLSTM(5, 7, bidirectional=True)
    x = torch.randn(4, 6, 5)

    def losses(model: UnrolledLSTM, x: Tensor) -> Tensor:
        return model(x).square().flatten(1).sum(1)

    gradients = [torch.autograd.grad(losses(model, record[None]).sum(), list(model.parameters())) for record in x]
    norm_B = torch.tensor([torch.cat([part.flatten() for part in parts]).norm() for parts in gradients])
    engine = PrivacyEngine(model, clipping_norm=1.0)
    torch.testing.assert_close(engine.backward(losses, x).norms, norm_B, rtol=1e-5, atol=0)
