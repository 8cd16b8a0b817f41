"""Reparametrized gradient perturbation: a large weight is trained through two thin factors.

Yu, Zhang, Chen, Yin, Liu, "Large Scale Private Learning via Low-rank Reparametrization", ICML 2021 (arXiv 2106.09352).
At each step a weight W (p x d) gets factors L (p x r) and R (r x d), orthonormal and close to the leading directions of
W - W_0, its way from its first value. Only L and R have per-record gradients, dL = G R^T and dR = L^T G for the
gradient G of W. From their clipped and noised sums follows the direction that the optimizer steps W along, G projected:

    dW = dL R + L dR - L (L^T dL) R

Guarantee: L and R are functions of W, which is released, and of the run's seed. They cost no privacy, and dW is
post-processing of the released dL and dR. A checkpoint needs W alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privlm.privacy import clipping, keyed_random


class Factor(nn.Linear):
    """A factor of a weight. It is chosen anew at every step, so that no saved model holds it."""

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        pass


class ReparametrizedLinear(nn.Module):
    """Computes what `linear` does, with its weight and its bias; in training gradients go to the factors instead.

    power_iterations: how closely the factors follow the leading directions of W - W_0.
    """

    def __init__(self, linear: nn.Linear, rank: int, power_iterations: int) -> None:
        super().__init__()
        if not 0 < rank <= min(linear.weight.shape):
            raise ValueError(f"rank {rank} of a weight of shape {list(linear.weight.shape)}")
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias = linear.bias
        place: dict[str, Any] = {"bias": False, "device": linear.weight.device, "dtype": linear.weight.dtype}
        self.right = Factor(linear.in_features, rank, **place)
        self.left = Factor(rank, linear.out_features, **place)
        self.power_iterations = power_iterations
        self.initial: Tensor
        self.register_buffer("initial", linear.weight.detach().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if not self.training:
            return y
        # Adds zero: the value and the gradient of x stay those of W, while L and R get gradients.
        through_constants = F.linear(F.linear(x, self.right.weight.detach()), self.left.weight.detach())
        return y + (self.left(self.right(x)) - through_constants)

    def merged(self) -> nn.Linear:
        """An ordinary layer with this weight and bias."""
        linear = nn.utils.skip_init(nn.Linear, self.weight.shape[1], self.weight.shape[0], bias=self.bias is not None)
        linear.weight, linear.bias = self.weight, self.bias
        return linear

    @torch.no_grad()
    def choose_factors(self, generator: np.random.Generator) -> None:
        """Power iterations on W - W_0, on a random matrix before W has moved; then of orthonormal columns and rows."""
        p, d = self.weight.shape
        drift_pd = (self.weight - self.initial).float()
        if not drift_pd.any():
            drift_pd = _gaussian(generator, (p, d)).to(drift_pd)
        right_rd = _gaussian(generator, (self.right.out_features, d)).to(drift_pd)
        for _ in range(self.power_iterations):
            left_pr = _orthonormal_columns(drift_pd @ right_rd.T)
            right_rd = _orthonormal_columns(drift_pd.T @ left_pr).T
        self.left.weight.copy_(left_pr)
        self.right.weight.copy_(right_rd)

    @torch.no_grad()
    def take_gradient(self) -> None:
        """Turns the factors' `.grad` into the weight's."""
        d_left, d_right = self.left.weight.grad, self.right.weight.grad
        if d_left is None or d_right is None:  # the losses do not depend on this layer
            return
        left, right = self.left.weight, self.right.weight
        self.weight.grad = d_left @ right + left @ d_right - left @ (left.T @ d_left) @ right
        self.left.weight.grad = self.right.weight.grad = None


clipping.RULES[ReparametrizedLinear.forward] = {"bias": clipping.bias}


class Reparametrization:
    """The reparametrized weights of a model, as a training loop sees them; models without any are left alone."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = {
            name: module for name, module in model.named_modules() if isinstance(module, ReparametrizedLinear)
        }

    def __bool__(self) -> bool:
        return bool(self._layers)

    def stepped(self, trainable: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """What the optimizer steps: the parameters that get gradients, with weights in place of their factors."""
        factors = {f"{name}.{side}.weight" for name in self._layers for side in ("left", "right")}
        weights = {f"{name}.weight": layer.weight for name, layer in self._layers.items()}
        return {name: parameter for name, parameter in trainable.items() if name not in factors} | weights

    def choose_factors(self, seed: int, step: int) -> None:
        """Before the first forward pass of a step: factors that depend on (weights, seed, step) alone."""
        for number, layer in enumerate(self._layers.values()):
            layer.choose_factors(keyed_random.generator("rgp", seed, step, number))

    def take_gradients(self) -> None:
        """After the last backward pass of a step, or its release: leaves the weights' directions in `.grad`."""
        for layer in self._layers.values():
            layer.take_gradient()


def _gaussian(generator: np.random.Generator, shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def _orthonormal_columns(matrix: Tensor) -> Tensor:
    """As many as `matrix` has, whatever its rank: Householder's method completes what a rank leaves open."""
    return torch.linalg.qr(matrix).Q
