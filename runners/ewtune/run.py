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
from privlm.data.text_classification import load, marks
from privlm.job import Job, Result
from privlm.metrics.classification import Estimate, accuracy, f1, majority_class
from privlm.models.encoder import EncoderClassifier, build_encoder_classifier, load_model, save_model
from privlm.models.files import locate_model
from privlm.privacy.ledger import Ledger
from privlm.privacy.plan import PrivacyPlan, account, make_plan
from privlm.training.batches import num_steps
from privlm.training.checkpoint import CheckpointStore
from privlm.training.classification import Classification, predict
from privlm.training.trainer import Evaluation, Monitor, Outcome, Private, Trainer

from .config import FEATURE_BATCH

FEATURES = "features.safetensors"

Examples = EncodedSplit | FeatureSplit


def run(config: Config, job: Job) -> None:
    data = load(config.data)
    model, tokenizer = build_encoder_classifier(config.model, locate_model(config.model), len(data.labels), config.seed)
    apply_adapter(model, config.adapter, config.seed)
    encoded = {
        name: tokenize(split, tokenizer, config.model.max_length)
        for name, split in {config.data.train_split: data.train, **data.evaluation}.items()
    }
    marked = marks(data, config.data, config.model.pretrained_on)
    flags = _flags(config, marked)

    steps = num_steps(config.trainer, len(data.train))
    private = _plan(config, job, len(data.train), steps, flags) if is_private(config) else None
    # A frozen encoder sees each text once, not once a step.
    splits: Mapping[str, Examples] = _features(job, model, encoded) if config.adapter.name == "head" else encoded
    outcome, results = _train_and_evaluate(config, job, model, splits, steps, private)

    if private is not None and job.is_main:
        spent = account(private.plan, private.ledger, steps=outcome.steps, flags=flags)
        job.write_json("privacy.json", spent)
        results += _privacy_results(private.plan, spent)
    truncated = sum(split.num_truncated for split in encoded.values())
    total = sum(map(len, encoded.values()))
    notes = [*data.notes, f"{truncated:,} of {total:,} texts cut to {config.model.max_length} tokens"]
    job.finish(results, status=outcome.status, notes=notes, marks=marked)
    if job.is_main:
        (job.directory / FEATURES).unlink(missing_ok=True)  # made from private texts, and of no further use


def _plan(config: Config, job: Job, dataset_size: int, steps: int, flags: list[str]) -> Private:
    """The noise for the budget, told to the user before training, and the ledger of earlier tries of this run."""
    plan = make_plan(config.privacy, dataset_size=dataset_size, batch_size=config.trainer.batch_size, steps=steps)
    ledger = Ledger(job.directory / "privacy_ledger.jsonl" if job.is_main else None)
    job.write_json("privacy.json", account(plan, ledger, steps=0, flags=flags))
    job.say(f"noise multiplier {plan.noise_multiplier:.4f}: {plan.describe()}")
    for warning in plan.warnings:
        job.say(f"warning: {warning}")
    return Private(plan, ledger, log_diagnostics=config.privacy.log_private_diagnostics)


def _features(job: Job, model: EncoderClassifier, encoded: dict[str, EncodedSplit]) -> dict[str, FeatureSplit]:
    """What the frozen encoder makes of the texts, computed by the main process and kept for a resumed run."""
    path = job.directory / FEATURES
    with job.stage("features") as stage:
        if stage.needed and job.is_main:
            model.to(job.accelerator.device)
            features = {}
            for name, split in encoded.items():
                with job.progress(f"features of the {name} split", len(split), interruptible=True) as tick:
                    features[name] = remembered_features(model, split, FEATURE_BATCH, progress=tick)
            files.write_file(path, lambda temporary: save_file(features, temporary))
            stage.output(path)
    job.accelerator.wait_for_everyone()
    features = load_file(path)
    return {name: FeatureSplit(features[name], split.labels) for name, split in encoded.items()}


def _train_and_evaluate(
    config: Config,
    job: Job,
    model: EncoderClassifier,
    splits: Mapping[str, Examples],
    steps: int,
    private: Private | None,
) -> tuple[Outcome, list[Result]]:
    """Trains `model` on the training split, or loads what an earlier try of this run has trained; then measures it.

    What is logged during training, and early stopping reads, is of the first evaluation split.
    """
    evaluated = {name: splits[name] for name in config.data.eval_splits}
    first = config.data.eval_splits[0]

    def values(model: nn.Module) -> Mapping[str, float]:
        return {name: estimate.value for name, estimate in _measure(config, model, evaluated[first]).items()}

    folder = job.directory / "model"
    with job.stage("train") as stage:
        if stage.needed:
            store = CheckpointStore(stage.checkpoints, keep=config.trainer.keep_checkpoints, rewind=stage.rewind)
            with job.progress("train", steps, start=store.last_step()) as tick:
                outcome = Trainer(
                    model,
                    Classification(),
                    splits[config.data.train_split],
                    config.trainer,
                    seed=config.seed,
                    accelerator=job.accelerator,
                    private=private,
                    canaries=job.canaries(),
                    evaluation=Evaluation(first, values, metric="accuracy"),
                    monitor=Monitor(log=stage.log, save=store, stop=lambda: job.stop.signum, tick=tick),
                ).run(steps)
            if job.is_main:
                _save(model, outcome, folder)
                for path in sorted(folder.rglob("*.*")):
                    stage.output(path)
        else:
            load_model(model, folder)
            outcome = Outcome(**json.loads((folder / "training.json").read_text(encoding="utf-8")))

    with job.stage("evaluate"):
        model.to(job.accelerator.device)
        results = [
            Result(metric, estimate.value, "fraction", estimate.n, estimate.ci_low, estimate.ci_high, name)
            for name, split in evaluated.items()
            for metric, estimate in _measure(config, model, split).items()
        ]
    trainable, total = count_parameters(model)
    return outcome, [
        *results,
        *(
            Result("majority_class", majority_class(split.labels)[1], "fraction", len(split), split=name)
            for name, split in evaluated.items()
        ),
        Result("trainable_parameters", trainable, "parameters"),
        Result("parameters", total, "parameters"),
    ]


def _measure(config: Config, model: nn.Module, split: Examples) -> dict[str, Estimate]:
    predictions = predict(model, split, config.trainer.micro_batch_size)
    measured = {"accuracy": accuracy(predictions, split.labels)}
    if config.data.positive_label is not None:
        positive = list(config.data.labels).index(config.data.positive_label)
        measured["f1"] = f1(predictions, split.labels, positive)
    return measured


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


def _flags(config: Config, marked: list[str]) -> list[str]:
    """What a reader of the privacy statement must know besides its numbers."""
    flags = {
        "seeded_noise": config.privacy.rng == "reproducible",
        "non_private_diagnostics": config.privacy.log_private_diagnostics,
        "early_stop_on_evaluation": config.trainer.early_stop_patience is not None,
        **dict.fromkeys(marked, True),
        "smoke": config.scale == "smoke",
    }
    return [name for name, holds in flags.items() if holds]
