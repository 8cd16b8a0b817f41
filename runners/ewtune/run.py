"""The experiment of EW-Tune: from a budget to a noise, private fine-tuning, accuracy.

1. Budget, data size, batch and steps give the noise multiplier by each accountant; the certified one trains
   (privlm.privacy.plan).
2. The chosen parameters (head, LoRA pairs or all) are trained with DP-SGD or DP-Adam (privlm.training).
3. The task's metric on the evaluation split, beside the certified epsilon and the Edgeworth estimate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from privlm import files
from privlm.adapters.adapter import apply_adapter, count_parameters
from privlm.config import Config, is_private
from privlm.data.encoding import EncodedSplit, tokenize
from privlm.data.features import FeatureSplit, remembered_features
from privlm.data.text_classification import load
from privlm.job import Job, Result
from privlm.metrics.classification import Estimate, accuracy, f1, majority_class
from privlm.models.encoder import EncoderClassifier, build_encoder_classifier, load_model, save_model
from privlm.models.files import locate_model
from privlm.privacy.ledger import Ledger
from privlm.privacy.plan import PrivacyPlan, account, make_plan
from privlm.training.batches import num_steps
from privlm.training.checkpoint import CheckpointStore
from privlm.training.classification import Classification, predict
from privlm.training.trainer import Evaluation, Outcome, Private, Trainer

from .config import FEATURE_BATCH

FEATURES = "features.safetensors"

Examples = EncodedSplit | FeatureSplit


def run(config: Config, job: Job) -> None:
    data = load(config.data)
    model, tokenizer = build_encoder_classifier(config.model, locate_model(config.model), len(data.labels), config.seed)
    apply_adapter(model, config.adapter, config.seed)
    test_split = config.data.eval_splits[0]
    train = tokenize(data.train, tokenizer, config.model.max_length)
    test = tokenize(data.evaluation[test_split], tokenizer, config.model.max_length)

    steps = num_steps(config.trainer, len(train))
    private = _plan(config, job, len(train), steps) if is_private(config) else None
    if config.adapter.name == "head":  # the encoder is frozen: each text passes it once, not once a step
        outcome, results = _train_and_test(config, job, model, *_features(job, model, train, test), steps, private)
    else:
        outcome, results = _train_and_test(config, job, model, train, test, steps, private)

    if private is not None and job.is_main:
        spent = account(private.plan, private.ledger, steps=outcome.steps, flags=_flags(config))
        job.write_json("privacy.json", spent)
        results += _privacy_results(private.plan, spent)
    truncated = train.num_truncated + test.num_truncated
    notes = [*data.notes, f"{truncated:,} of {len(train) + len(test):,} texts cut to {config.model.max_length} tokens"]
    job.finish(results, status=outcome.status, notes=notes)
    if job.is_main:
        (job.directory / FEATURES).unlink(missing_ok=True)  # made from private texts, and of no further use


def _plan(config: Config, job: Job, dataset_size: int, steps: int) -> Private:
    """The noise for the budget, told to the user before training, and the ledger of earlier tries of this run."""
    plan = make_plan(config.privacy, dataset_size=dataset_size, batch_size=config.trainer.batch_size, steps=steps)
    ledger = Ledger(job.directory / "privacy_ledger.jsonl" if job.is_main else None)
    job.write_json("privacy.json", account(plan, ledger, steps=0, flags=_flags(config)))
    job.say(f"noise multiplier {plan.noise_multiplier:.4f}: {plan.describe()}")
    for warning in plan.warnings:
        job.say(f"warning: {warning}")
    return Private(plan, ledger, log_diagnostics=config.privacy.log_private_diagnostics)


def _features(
    job: Job, model: EncoderClassifier, train: EncodedSplit, test: EncodedSplit
) -> tuple[FeatureSplit, FeatureSplit]:
    """What the frozen encoder makes of the texts, computed by the main process and kept for a resumed run."""
    path = job.directory / FEATURES
    with job.stage("features") as stage:
        if stage.needed and job.is_main:
            model.to(job.accelerator.device)
            features = {}
            for name, split in {"train": train, "test": test}.items():
                with job.progress(f"features of the {name} split", len(split), interruptible=True) as tick:
                    features[name] = remembered_features(model, split, FEATURE_BATCH, progress=tick)
            files.write_file(path, lambda temporary: save_file(features, temporary))
            stage.output(path)
    job.accelerator.wait_for_everyone()
    features = load_file(path)
    return FeatureSplit(features["train"], train.labels), FeatureSplit(features["test"], test.labels)


def _train_and_test(
    config: Config,
    job: Job,
    model: EncoderClassifier,
    train: Examples,
    test: Examples,
    steps: int,
    private: Private | None,
) -> tuple[Outcome, list[Result]]:
    """Trains `model`, or loads what an earlier try of this run has trained; then measures it on `test`."""

    def measure(model: nn.Module) -> dict[str, Estimate]:
        predictions = predict(model, test, config.trainer.micro_batch_size)
        measured = {"accuracy": accuracy(predictions, test.labels)}
        if config.data.positive_label is not None:
            positive = list(config.data.labels).index(config.data.positive_label)
            measured["f1"] = f1(predictions, test.labels, positive)
        return measured

    def values(model: nn.Module) -> Mapping[str, float]:
        return {name: estimate.value for name, estimate in measure(model).items()}

    split = config.data.eval_splits[0]
    folder = job.directory / "model"
    with job.stage("train") as stage:
        if stage.needed:
            store = CheckpointStore(stage.checkpoints, keep=config.trainer.keep_checkpoints, rewind=stage.rewind)
            with job.progress("train", steps, start=store.last_step()) as tick:
                outcome = Trainer(
                    model,
                    Classification(),
                    train,
                    config.trainer,
                    seed=config.seed,
                    accelerator=job.accelerator,
                    private=private,
                    canaries=job.canaries(),
                    evaluation=Evaluation(split, values, early_stop_metric="accuracy"),
                    log=stage.log,
                    save=store,
                    stop=lambda: job.stop.signum,
                    tick=tick,
                ).run(steps)
            if job.is_main:
                _save(model, outcome, folder)
                for path in sorted(folder.rglob("*.*")):
                    stage.output(path)
        else:
            load_model(model, folder)
            outcome = Outcome(**json.loads((folder / "training.json").read_text(encoding="utf-8")))

    with job.stage("evaluate"):
        results = [
            Result(name, estimate.value, "fraction", estimate.n, estimate.ci_low, estimate.ci_high, split)
            for name, estimate in measure(model.to(job.accelerator.device)).items()
        ]
    trainable, total = count_parameters(model)
    return outcome, [
        *results,
        Result("majority_class", majority_class(test.labels)[1], "fraction", len(test), split=split),
        Result("trainable_parameters", trainable, "parameters"),
        Result("parameters", total, "parameters"),
    ]


def _save(model: EncoderClassifier, outcome: Outcome, folder: Path) -> None:
    def fill(temporary: Path) -> None:
        save_model(model, temporary)
        (temporary / "training.json").write_text(
            json.dumps({"status": outcome.status, "steps": outcome.steps}), encoding="utf-8"
        )

    files.write_directory(folder, fill)


def _privacy_results(plan: PrivacyPlan, spent: dict[str, Any]) -> list[Result]:
    results = [
        Result("epsilon", spent["epsilon"], "epsilon"),
        Result("epsilon_edgeworth", spent["estimates"]["edgeworth"], "epsilon (estimate)"),
        Result("noise_multiplier", plan.noise_multiplier, "clipping norms"),
    ]
    for accountant, noise_multiplier in plan.noise_multipliers.items():
        results.append(Result(f"noise_multiplier_{accountant}", noise_multiplier, "clipping norms"))
    if plan.saving_vs_rdp is not None:
        results.append(Result("saving_vs_rdp", plan.saving_vs_rdp, "percent"))
    return results


def _flags(config: Config) -> list[str]:
    """What a reader of the privacy statement must know besides its numbers."""
    flags = {
        "seeded_noise": config.privacy.rng == "reproducible",
        "non_private_diagnostics": config.privacy.log_private_diagnostics,
        "early_stop_on_evaluation": config.trainer.early_stop_patience is not None,
        "public-overlap": bool(set(config.model.pretrained_on) & set(config.data.public_overlap)),
        "smoke": config.scale == "smoke",
    }
    return [name for name, holds in flags.items() if holds]
