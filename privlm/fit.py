"""Trains a model as one stage: from data to a priced, saved model that was proved to be the trained one.

The price is told before the first step, every release is in the ledger before its noise is used, checkpoints make the
stage resumable, and what is saved is read back and compared with what was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from privlm import files
from privlm.errors import UsageError
from privlm.job import Stage
from privlm.kept_model import load_model, prove, save_model
from privlm.models.loaded import Loaded
from privlm.privacy.accounting import Segment
from privlm.privacy.ledger import Head
from privlm.privacy.plan import PrivacyPlan, make_plan
from privlm.privacy.run_account import KEY, as_json
from privlm.privacy.schema import is_private_by_record, refuse_by_client
from privlm.reload_proof import ProofLosses
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

    Raises UsageError for a batch larger than the data, a delta that protects nobody, a budget that is out of reach, or
    a mechanism that protects clients.
    """
    refuse_by_client(config, "this trains one model")
    if not is_private_by_record(config):
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
        save_model(loaded, folder, outcome=asdict(outcome), price=_price_of(private))
        losses = ProofLosses(objective, data, stage.seed(), settings.micro_batch_size, job.accelerator.autocast)
        job.say(f"{stage.name}: {prove(loaded, folder, losses, outcome, evaluation)}")
        stage.output(*sorted(path for path in folder.rglob("*") if path.is_file()))
    job.wait_for_everyone()
    return outcome


def load_trained(loaded: Loaded, folder: Path) -> Outcome:
    """Puts the model that `fit` has saved into `loaded.model`, and says how its training ended.

    Raises UsageError as privlm.kept_model.load_model.
    """
    return Outcome(**load_model(loaded, folder)["outcome"])


def _private(stage: Stage, plan: PrivacyPlan | None, num_examples: int, steps: int, share: float) -> Private | None:
    """The noise for the budget, told to the user before training, and the ledger of earlier tries of this stage."""
    config, ledger = stage.config, stage.ledger()
    refuse_by_client(config, f"stage {stage.name} trains one model")
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


def _price_of(private: Private | None) -> dict[str, Any]:
    """What training.json says of it."""
    if private is None:
        return {"plan": None}
    return {"plan": private.plan.to_dict(), KEY: as_json(private.ledger.head)}
