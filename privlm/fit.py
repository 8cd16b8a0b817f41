"""Trains a model as one stage: from data to a priced, saved model that was proved to be the trained one.

The price is told before the first step, every release is in the ledger before its noise is used, checkpoints make the
stage resumable, and what is saved is read back and compared with what was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from privlm import files, reload_proof
from privlm.errors import UsageError
from privlm.job import Stage
from privlm.models.loaded import Loaded
from privlm.privacy.accounting import Segment
from privlm.privacy.ledger import Head
from privlm.privacy.plan import PrivacyPlan, make_plan
from privlm.privacy.run_account import KEY, as_json
from privlm.privacy.schema import is_private
from privlm.reload_proof import Proof, ProofLosses
from privlm.rundir import MODEL, TRAINING
from privlm.training.batches import Batches, TrainingData, num_steps
from privlm.training.checkpoint import CheckpointStore
from privlm.training.objective import Objective
from privlm.training.trainer import Evaluation, Monitor, Outcome, Private, Trainer


def plan_of(
    config: Any,
    num_examples: int,
    steps: int | None = None,
    *,
    compare: bool = False,
    spent: Sequence[Segment] = (),
    share: float = 1.0,
) -> PrivacyPlan | None:
    """The noise and the price of training on `num_examples`; None without privacy.

    A runner that works long before it trains makes the plan first, so that what cannot be is refused at once, and hands
    it to `fit`. compare: also the noise that the other accountants would ask for. spent: by earlier stages.
    share: of privacy.epsilon that may be spent when this stage ends.

    Raises UsageError for a batch larger than the data, a delta that protects nobody, or a budget that is out of reach.
    """
    if not is_private(config):
        return None
    return make_plan(
        config.privacy,
        dataset_size=num_examples,
        batch_size=config.trainer.batch_size,
        steps=num_steps(config.trainer, num_examples) if steps is None else steps,
        compare=compare,
        spent=spent,
        share=share,
    )


def fit(
    stage: Stage,
    loaded: Loaded,
    objective: Objective,
    data: TrainingData,
    *,
    steps: int | None = None,
    batches: Batches | None = None,
    evaluation: Evaluation | None = None,
    plan: PrivacyPlan | None = None,
    share: float = 1.0,
    public: bool = False,
    trainer: Any = None,
) -> Outcome:
    """Trains `loaded.model` in place, by trainer and privacy of the stage's configuration; saves it in stage.folder.

    A stage that is done loads the model instead; one that was interrupted goes on from its last checkpoint.

    steps: null: trainer.steps or trainer.epochs. batches: which examples each step sees, where not shuffled ones.
    plan: of `plan_of`; made here where it is not given. share: of privacy.epsilon that may be spent when this stage
        ends; a task of several private stages leaves a rest to the later ones.
    public: the data needs no protection, and trains without privacy.
    trainer: a TrainerConfig for this stage alone, of a public one; null: that of the configuration.

    Raises UsageError as `plan_of` and the Trainer, and where nothing of the model trains; NotReproducedError where the
    saved model is not the trained one.
    """
    job, config = stage.job, stage.config
    folder = stage.folder / MODEL if stage.is_kept else None
    if not stage.needed:
        assert folder is not None
        outcome = load_trained(loaded, folder)
        loaded.model.to(job.accelerator.device)
        _tell_price_again(stage, folder, outcome.steps)
        return outcome
    if not any(parameter.requires_grad for parameter in loaded.model.parameters()):
        raise UsageError("nothing of the model trains (adapter=none?): choose another adapter")
    settings = config.trainer if trainer is None else trainer
    steps = num_steps(settings, len(data)) if steps is None else steps
    private = None if public else _private(stage, plan, len(data), steps, share)
    assert private is None or trainer is None, "a private stage is planned by the configuration's trainer"
    if private is None:
        job.trains_without_privacy(stage.name)
    store = CheckpointStore(stage.checkpoints, keep=settings.keep_checkpoints, rewind=stage.rewind) if folder else None
    with job.progress(stage.name, steps, start=store.last_step() if store else 0) as show:

        def tick(step: int) -> None:
            show(step)
            if job.is_main and job.price.is_due():
                job.tell_price(quick=True)

        outcome = Trainer(
            loaded.model,
            objective,
            data,
            settings,
            seed=stage.seed(),
            accelerator=job.accelerator,
            private=private,
            canaries=stage.canaries(),
            evaluation=evaluation,
            batches=batches,
            monitor=Monitor(log=stage.log, save=store, stop=lambda: job.stop.signum, tick=tick),
        ).run(steps)
    stage.ended(outcome.status)
    if objective.private_state:  # a memory of examples, say, lies in the checkpoints
        stage.discard(stage.checkpoints)
    if private is not None:
        _tell_price(stage, private.plan, steps=outcome.steps)
    if folder is not None and job.is_main:
        _save(loaded, outcome, private, folder)
        losses = ProofLosses(objective, data, stage.seed(), settings.micro_batch_size, job.accelerator.autocast)
        job.say(f"{stage.name}: {_prove(loaded, folder, losses, outcome, evaluation)}")
        stage.output(*sorted(path for path in folder.rglob("*") if path.is_file()))
    job.wait_for_everyone()
    return outcome


def load_trained(loaded: Loaded, folder: Path) -> Outcome:
    """Puts the model that `fit` has saved into `loaded.model`, and says how its training ended.

    Raises UsageError where a file is absent or has changed since it was saved, or belongs to another model.
    """
    kept = files.read_json(folder / TRAINING)
    if kept is None:
        raise UsageError(f"{folder} holds no trained model: there is no {TRAINING}")
    for name, digest in kept["files"].items():
        path = folder / name
        if not path.is_file() or files.sha256_file(path) != digest:
            raise UsageError(f"{path} is absent or has changed since it was saved: make the run again, with --force")
    loaded.load(loaded.model, folder)
    return Outcome(**kept["outcome"])


def _private(stage: Stage, plan: PrivacyPlan | None, num_examples: int, steps: int, share: float) -> Private | None:
    """The noise for the budget, told to the user before training, and the ledger of earlier tries of this stage."""
    config, ledger = stage.config, stage.ledger()
    of_earlier_stages = ledger.segments(through_step=0)
    plan = plan or plan_of(config, num_examples, steps, spent=of_earlier_stages, share=share)
    if plan is None:
        return None
    _tell_price(stage, plan, steps=0)
    stage.job.say(f"planned: noise multiplier {plan.noise_multiplier:.4f}: {plan.describe()}")
    for warning in plan.warnings:
        stage.job.say(f"warning: {warning}")
    return Private(plan, ledger, log_diagnostics=config.privacy.log_private_diagnostics)


def _tell_price(stage: Stage, plan: PrivacyPlan, *, steps: int) -> None:
    """privacy.json: what all private stages of the run have spent, after `steps` of this one."""
    stage.job.price.stages[stage.name] = plan, steps
    stage.job.tell_price()


def _tell_price_again(stage: Stage, folder: Path, steps: int) -> None:
    """That of a stage that an earlier try has finished, from the ledger as it is now.

    Raises UsageError where the ledger is not the one that the stage was trained with.
    """
    kept = files.read_json(folder / TRAINING)
    if kept["plan"] is None:
        stage.job.trains_without_privacy(stage.name)
        return
    if stage.job.is_main:
        if KEY not in kept:
            raise UsageError(
                f"{folder / TRAINING} is of an older version, which names no head of the privacy ledger: what the "
                "stage has spent cannot be checked; start again with --force"
            )
        stage.ledger().require(Head.from_json(kept[KEY]), f"stage {stage.name}")
    known = {field.name for field in fields(PrivacyPlan)}
    plan = PrivacyPlan(**{name: value for name, value in kept["plan"].items() if name in known})
    _tell_price(stage, plan, steps=steps)


def _save(loaded: Loaded, outcome: Outcome, private: Private | None, folder: Path) -> None:
    def fill(temporary: Path) -> None:
        loaded.save(loaded.model, temporary)
        digests = files.digests_of(temporary)
        price: dict[str, Any] = {"plan": None}
        if private is not None:
            price = {"plan": private.plan.to_dict(), KEY: as_json(private.ledger.head)}
        content = {"outcome": asdict(outcome), **price, "files": digests}
        files.write_json(temporary / TRAINING, content)

    files.write_directory(folder, fill)


def _prove(loaded: Loaded, folder: Path, losses: ProofLosses, outcome: Outcome, evaluation: Evaluation | None) -> Proof:
    """The reload proof (privlm.reload_proof) of what lies in `folder`; the model it makes is gone afterwards."""
    device = next(loaded.model.parameters()).device
    again = loaded.fresh()
    again.model.to(device)
    moved = reload_proof.distance(loaded.model, again.model)
    load_trained(again, folder)
    num_tensors = reload_proof.compare_states(loaded.model, again.model)
    reload_proof.compare_losses(loaded.model, again.model, losses)
    if outcome.best is not None and outcome.best_step is not None and evaluation is not None:
        reload_proof.compare_evaluation(evaluation.function(again.model), outcome.best, outcome.best_step)
    return Proof(num_tensors, moved)
