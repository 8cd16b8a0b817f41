"""A training step under differential privacy: a Poisson batch, clipped, noised and accounted for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from privlm.errors import PrivLMError
from privlm.privacy import accounting
from privlm.privacy.engine import ClippingStatistics, PrivacyEngine
from privlm.privacy.ledger import Ledger
from privlm.privacy.neighbours import Subset
from privlm.privacy.noise import Noise, ReproducibleNoise, SecureNoise
from privlm.privacy.plan import PrivacyPlan
from privlm.privacy.rgp import Reparametrization
from privlm.privacy.sampling import PoissonSampler
from privlm.privacy.watch import SamplingCheck
from privlm.training.batches import Indices
from privlm.training.gradients import Examples, Rows, Totals
from privlm.training.objective import PerExample
from privlm.training.processes import broadcast, world_of


@dataclass(frozen=True)
class Private:
    """Training under differential privacy: the plan of the mechanism, and the ledger that every release enters.

    log_diagnostics: also log what reads private data and is covered by no epsilon: training loss, clipping, and the
        speed and memory that the size of the drawn batch shows in.
    """

    plan: PrivacyPlan
    ledger: Ledger
    log_diagnostics: bool = False

    def allows_one_more(self) -> bool:
        """Whether the certified epsilon of all releases so far and one more stays within the budget."""
        plan = self.plan
        if math.isinf(plan.budget) or plan.covers([*self.ledger.segments(), plan.step]):
            return True
        return self.ledger.budget_allows(
            plan.step,
            target_epsilon=plan.budget,
            delta=plan.delta,
            accountant=plan.certifier,
            adjacency=plan.adjacency,
        )

    def spent_through(self, step: int) -> float:
        """Certified epsilon of the releases of steps up to `step` (coarse grid: an upper bound too, and quick)."""
        return accounting.epsilon(
            self.ledger.segments(through_step=step),
            self.plan.delta,
            accountant=self.plan.certifier,
            adjacency=self.plan.adjacency,
            discretization=1e-3 if self.plan.certifier == "pld" else None,
        ).epsilon


class PrivateGradient:
    """The clipped and noised gradient of a Poisson batch; see privlm.privacy.engine for the guarantee.

    The engine is attached to the model until `close`.
    """

    def __init__(self, private: Private, examples: Examples, rgp: Reparametrization) -> None:
        plan = private.plan
        seed = examples.seed if plan.rng == "reproducible" else None
        self._private = private
        self._examples = examples
        self._rgp = rgp
        self._noise: Noise = SecureNoise() if seed is None else ReproducibleNoise(seed)
        self._sampler = PoissonSampler(plan.dataset_size, plan.sampling_rate, seed, broadcast=broadcast)
        self._check = SamplingCheck(plan.dataset_size, plan.sampling_rate)
        self._engine = PrivacyEngine(examples.model, clipping_norm=plan.clipping_norm, clipping=plan.clipping)

    def close(self) -> None:
        self._engine.detach()

    def __call__(self, step: int) -> Totals | None:
        accelerator, plan = self._examples.accelerator, self._private.plan
        indices = self._sampler.indices(step)
        self._check.see(indices)
        totals = Totals(accelerator.device, len(indices)) if self._private.log_diagnostics else None
        pieces = self._examples.pieces(indices)
        for piece in pieces:
            per_example, statistics = self._add(step, piece)
            if totals is not None:
                clipped = torch.tensor(float(statistics.num_clipped))
                totals.add(per_example, torch.ones_like(per_example.loss), clipped_fraction=clipped)
        if self._engine.is_look_due and len(pieces) > 1:  # no piece had two examples
            self._look(step, np.concatenate(pieces)[:2])
        self._engine.release(
            self._noise,
            step=step,
            sampling_rate=plan.sampling_rate,
            noise_multiplier=plan.noise_multiplier,
            expected_batch_size=plan.expected_batch_size,
            world=world_of(accelerator),
            ledger=self._private.ledger if accelerator.is_main_process else None,
        )
        self._rgp.take_gradients()
        if totals is not None:
            totals.share(accelerator)
        return totals

    def _add(self, step: int, piece: Indices) -> tuple[PerExample, ClippingStatistics]:
        """Takes the examples of one micro-batch into the sum; what the objective gave for them."""
        given: list[PerExample] = []

        def losses(model: nn.Module, rows: Rows) -> Tensor:
            per_example = self._losses(step, rows)
            if not given:  # the calls that follow are the engine's own, with other rows
                given.append(per_example.detached())
            return per_example.loss

        self._examples.seed_dropout(step, piece)
        with self._examples.accelerator.autocast():
            statistics = self._engine.backward(losses, self._examples.rows(piece), subset=self._subset(piece))
        return given[0], statistics

    def _look(self, step: int, pair: Indices) -> None:
        """Micro-batches of one example show nothing of their neighbours: two are looked at together."""
        self._examples.seed_dropout(step, pair)
        with self._examples.accelerator.autocast():
            self._engine.look(
                lambda model, rows: self._losses(step, rows).loss, self._examples.rows(pair), subset=self._subset(pair)
            )

    def _subset(self, piece: Indices) -> Subset:
        return lambda positions: self._examples.rows(piece[list(positions)])

    def _losses(self, step: int, rows: Rows) -> PerExample:
        per_example = self._examples.losses_of(step, rows)
        if per_example.weight is not None:
            raise PrivLMError(
                "privacy: the objective weighs its examples, which lets one example change another's share; "
                "use an objective without weights or privacy=none"
            )
        return per_example
