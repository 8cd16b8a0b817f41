"""A training step under differential privacy: a Poisson batch, clipped, noised and accounted for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from privlm.errors import PrivLMError
from privlm.privacy import accounting
from privlm.privacy.engine import PrivacyEngine
from privlm.privacy.ledger import Ledger
from privlm.privacy.noise import Noise, ReproducibleNoise, SecureNoise
from privlm.privacy.plan import PrivacyPlan
from privlm.privacy.rgp import Reparametrization
from privlm.privacy.sampling import PoissonSampler
from privlm.privacy.watch import SamplingCheck
from privlm.training.gradients import Examples, Totals
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
        for piece in self._examples.pieces(indices):
            with self._engine.recording():
                per_example = self._examples(step, piece)
                if per_example.weight is not None:
                    raise PrivLMError(
                        "privacy: the objective weighs its examples, which lets one example change another's share; "
                        "use an objective without weights or privacy=none"
                    )
                statistics = self._engine.backward(per_example.loss)
            if totals is not None:
                clipped = torch.tensor(float(statistics.num_clipped))
                totals.add(per_example, torch.ones_like(per_example.loss), clipped_fraction=clipped)
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
