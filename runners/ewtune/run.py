"""The experiment of EW-Tune: from a budget to a noise, private fine-tuning, accuracy.

1. Budget, data size, batch and steps give the noise multiplier by each accountant; the certified one trains
   (privlm.privacy.plan).
2. The chosen parameters (head, LoRA pairs or all) are trained with DP-SGD or DP-Adam (privlm.training).
3. The task's metric on each evaluation split, beside the certified epsilon and the Edgeworth estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from privlm import files
from privlm.adapters.adapter import count_parameters
from privlm.adapters.load import load_encoder_classifier
from privlm.config import Config
from privlm.data.encoding import EncodedSplit, tokenize
from privlm.data.features import FeatureSplit, remembered_features
from privlm.data.text_classification import load, marks
from privlm.fit import fit, plan_of
from privlm.job import Job
from privlm.metrics.classification import majority_class
from privlm.training.classification import Classification
from privlm.training.trainer import Evaluation

from .config import FEATURE_BATCH
from .measure import measure
from .predictor import predictor

__all__ = ["predictor", "run"]

Examples = EncodedSplit | FeatureSplit


def run(config: Config, job: Job) -> None:
    data = load(config.data)
    loaded = load_encoder_classifier(config.model, config.adapter, len(data.labels), config.seed)
    model = loaded.model
    encoded = {
        name: tokenize(split, loaded.tokenizer, config.model.max_length)
        for name, split in {config.data.train_split: data.train, **data.evaluation}.items()
    }
    truncated, total = sum(split.num_truncated for split in encoded.values()), sum(map(len, encoded.values()))
    job.note(*data.notes, f"{truncated:,} of {total:,} texts cut to {config.model.max_length} tokens")
    job.mark(*marks(data, config.data, config.model.pretrained_on))

    plan = plan_of(config, len(data.train), compare=True)
    # A frozen encoder sees each text once, not once a step.
    splits: Mapping[str, Examples] = _features(job, model, encoded) if config.adapter.name == "head" else encoded
    evaluated = {name: splits[name] for name in config.data.eval_splits}
    first = config.data.eval_splits[0]

    def values(model: nn.Module) -> Mapping[str, float]:
        """What is logged during training, and early stopping reads."""
        return {name: estimate.value for name, estimate in measure(config, model, evaluated[first]).items()}

    with job.stage("train") as stage:
        evaluation = Evaluation(first, values, metric="accuracy")
        fit(stage, loaded, Classification(), splits[config.data.train_split], evaluation=evaluation, plan=plan)

    with job.stage("evaluate") as stage:
        if stage.needed:
            for name, split in evaluated.items():
                stage.report(split=name, **measure(config, model, split))
            for name, split in evaluated.items():
                stage.report(split=name, n=len(split), majority_class=majority_class(split.labels)[1])
            trainable, total = count_parameters(model)
            stage.report(unit="parameters", trainable_parameters=trainable, parameters=total)


def _features(job: Job, model: Any, encoded: dict[str, EncodedSplit]) -> dict[str, FeatureSplit]:
    """What the frozen encoder makes of the texts, computed by the main process and kept until the run is done."""
    with job.stage("features", temporary=True) as stage:
        path: Path = stage.folder / "features.safetensors"
        if stage.needed and job.is_main:
            model.to(job.accelerator.device)
            features = {}
            for name, split in encoded.items():
                with job.progress(f"features of the {name} split", len(split), interruptible=True) as tick:
                    features[name] = remembered_features(model, split, FEATURE_BATCH, progress=tick)
            files.write_file(path, lambda temporary: save_file(features, temporary))
            stage.output(path)
    job.wait_for_everyone()
    features = load_file(path)
    return {name: FeatureSplit(features[name], split.labels) for name, split in encoded.items()}
