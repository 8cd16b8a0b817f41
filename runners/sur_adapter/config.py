"""Schema, checks and inputs of the task `sur_adapter`."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import MISSING

from privlm.content import Content
from privlm.diffusion.denoising_schema import DenoisingConfig
from privlm.diffusion.schema import SamplingConfig
from privlm.errors import UsageError
from privlm.files import sha256_file
from privlm.models.schema import DTYPES
from privlm.privacy.schema import is_private
from privlm.schema import TaskConfig, all_found, require_packages, setting

SUR = "sur_adapter"
"""Name of the task, and of its adapter."""

METHODS = ("sur", "align_only", "llm_only", "finetune")
DISTANCES = ("kl_feature", "mse", "cosine")
REDUCTIONS = ("batch", "token")
BACKENDS = ("hf", "hash", "precomputed")
POOLINGS = ("last", "mean", "tokens")
NORMS = ("raw", "final")
MIXES = ("paper", "residual")
COMPATS = ("paper", "released")
APPLIED = ("cond", "both")
PROJECTIONS = ("train", "frozen")
FINETUNED = ("lora", "full")
"""Adapters of task.method=finetune."""


@dataclass
class LossesConfig:
    """Beside the denoising loss: align, of the adapted states from those of the keywords; llm, of the adapter's encoder
    from the projected language model. kl_reduction: of kl_feature, summed over the tokens (batch, as the paper) or
    their mean. mask_padding: positions of padding count nothing in all of them.

    w_keep: of the distance (by align) of the keywords' states from themselves behind the adapter. It is ours: without
    it an adapter that has seen sentences alone spoils prompts that were right.
    """

    w_align: float = setting(at_least=0)
    w_llm: float = setting(at_least=0)
    w_keep: float = setting(at_least=0)
    align: str = setting(options=DISTANCES)
    llm: str = setting(options=DISTANCES)
    kl_reduction: str = setting(options=REDUCTIONS)
    mask_padding: bool = MISSING


@dataclass
class FeaturesConfig:
    """The vector of each narrative prompt. hf: a layer of llm=; hash: hashed words, for tests; precomputed: a file.

    layer: 0 is the embedding, 1 the first layer, -1 the last. norm: raw, what the layer itself gives. width: of hash.
    path: of precomputed, a dictionary (.pt) or a folder that cache_dir has filled.
    cache_dir: a folder that runs share; null: the run's own.
    """

    backend: str = setting(options=BACKENDS)
    layer: int = MISSING
    pooling: str = setting(options=POOLINGS)
    norm: str = setting(options=NORMS)
    dtype: str = setting(options=DTYPES)
    width: int = setting(above=0)
    path: str | None = setting(same_run=True)  # its fingerprint stands for it
    cache_dir: str | None = setting(same_run=True)


@dataclass
class JudgingConfig:
    """num_images: test prompts that are drawn, in the order of the data. extractor: of FID and KID, with the path of
    its weights where they are not shipped. allow_small: FID also of fewer images than features. clip: folder of a
    CLIPModel for the CLIP score; null: none. grid: prompts in the picture.
    """

    num_images: int = setting(above=0)
    extractor: str = MISSING
    extractor_path: str | None = setting(same_run=True)  # its fingerprint stands for it
    allow_small: bool = MISSING
    clip: str | None = setting(same_run=True)  # its fingerprint stands for it
    grid: int = setting(at_least=0, same_run=True)

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        if self.extractor not in ("clip", "inception") or self.extractor_path:
            return []
        return [
            f"task.judging.extractor_path: name the weights of task.judging.extractor={self.extractor}, or choose "
            "shapes_cnn"
        ]


@dataclass
class Task(TaskConfig):
    """method: sur, the paper's; align_only and llm_only leave one of the two distances out; finetune trains the UNet
    (adapter=lora, adapter=full) on narrative prompts in its place.
    """

    method: str = setting(options=METHODS)
    losses: LossesConfig = MISSING
    features: FeaturesConfig = MISSING
    denoising: DenoisingConfig = MISSING
    sampling: SamplingConfig = MISSING
    judging: JudgingConfig = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together, and with the other groups."""
        by_method = _check_finetune if self.method == "finetune" else _check_sur
        return by_method(self, config) + _check_features(self, config) + _check_average(self)


def _check_average(task: Any) -> list[str]:
    if task.denoising.ema_decay is None:
        return []
    return ["task.denoising.ema_decay: task=sur_adapter keeps the last weights; set it to null"]


def _check_finetune(task: Any, config: Any) -> list[str]:
    if config.adapter.name in FINETUNED:
        return []
    return [
        f"adapter={config.adapter.name}: task.method=finetune trains the UNet: adapter={' or adapter='.join(FINETUNED)}"
    ]


def _check_sur(task: Any, config: Any) -> list[str]:
    if config.adapter.name != SUR:
        return [f"adapter={config.adapter.name}: task.method={task.method} trains adapter={SUR}; choose it"]
    problems = []
    if task.denoising.caption_dropout:
        problems.append(
            "task.denoising.caption_dropout teaches a UNet to do without captions, and the adapter's is frozen: set it "
            "to 0"
        )
    if config.adapter.compat == "released" and is_private(config):
        problems.append(
            "adapter.compat=released: its attention runs across the prompts of a batch, which privacy rules out; "
            "choose adapter.compat=paper"
        )
    return problems


def _check_features(task: Any, config: Any) -> list[str]:
    features, problems = task.features, []
    if (features.path is None) == (features.backend == "precomputed"):
        problems.append(
            "task.features.path: name the file of vectors (task.features.backend=precomputed)"
            if features.path is None
            else f"task.features.path is of task.features.backend=precomputed, not {features.backend}: set it to null"
        )
    if asks_llm(task) and config.llm is None:
        problems.append("llm: task.features.backend=hf needs somebody to ask; choose llm=NAME (`privlm list llms`)")
    return problems


class LossWeights(NamedTuple):
    """Of the losses beside denoising."""

    w_align: float
    w_llm: float
    w_keep: float


def weights_of(task: Any) -> LossWeights:
    """As the method leaves them."""
    reads_keywords, losses = task.method in ("sur", "align_only"), task.losses
    return LossWeights(
        w_align=losses.w_align if reads_keywords else 0.0,
        w_llm=losses.w_llm if task.method in ("sur", "llm_only") else 0.0,
        w_keep=losses.w_keep if reads_keywords else 0.0,
    )


def asks_llm(task: Any) -> bool:
    """Whether vectors of prompts come from llm=."""
    return weights_of(task).w_llm > 0 and task.features.backend == "hf"


@dataclass
class SurAdapterConfig:
    """The adapter between text encoder and UNet (configs/adapter).

    compat: released computes as the released code does, for comparison. apply_to: cond, prompts alone; both, their
    negative prompts too. proj: the layer from the language model's width to the text encoder's trains, or stays as it
    was drawn.
    """

    name: str = MISSING
    depth: int = setting(above=0)
    heads: int = setting(above=0)
    feedforward: int = setting(above=0)
    dropout: float = setting(at_least=0, below=1)
    mix: str = setting(options=MIXES)
    eta: float = setting(at_least=0, at_most=1)
    compat: str = setting(options=COMPATS)
    apply_to: str = setting(options=APPLIED)
    proj: str = setting(options=PROJECTIONS)

    def check(self, config: Any) -> list[str]:
        """What its fields say together, and with the task."""
        return [] if config.task.name == SUR else [f"adapter={SUR} stands before the UNet of task={SUR} alone"]


SCHEMAS = {"adapter": {SUR: SurAdapterConfig}}


def contents(config: Any) -> dict[str, Content]:
    """Whether data and weights are what their names promise. Reads the data, so that what is wrong with them is told
    before anything is written.
    """
    from privlm.diffusion import images, locate
    from privlm.llm.local.weights import llm_contents

    found = {
        "data": images.content_of(config.data, images.image_inputs(config.data).get("data", "")),
        **locate.contents(config.model),
    }
    return found | (llm_contents(config.llm) if asks_llm(config.task) else {})


def inputs(config: Any) -> dict[str, str]:
    """Fingerprints of what the run reads. Raises UsageError for what is not at hand, all in one message."""
    from privlm.diffusion import images
    from privlm.llm.opening import llm_inputs

    return all_found(
        lambda: require_packages(f"task={SUR}", "diffusers", "PIL", extra="diffusion"),
        lambda: _pipeline(config.model),
        lambda: images.image_inputs(config.data),
        lambda: llm_inputs(config.llm) if asks_llm(config.task) else {},
        lambda: _file("task.features.path", config.task.features.path if weights_of(config.task).w_llm else None),
        lambda: _file("task.judging.clip", config.task.judging.clip),
        lambda: _file("task.judging.extractor_path", config.task.judging.extractor_path),
    )


def _pipeline(model: Any) -> dict[str, str]:
    from privlm.diffusion.locate import inputs, locate_pipeline
    from privlm.diffusion.pipeline_folder import family_of

    found = inputs(model)
    if family_of(locate_pipeline(model).directory) == "sdxl":
        raise UsageError(f"model={model.name}: task={SUR} adapts one text encoder, and SDXL has two: model=sd15")
    return found


def _file(field: str, path: str | None) -> dict[str, str]:
    """Of a file, or of all files of a folder."""
    if path is None:
        return {}
    source = Path(path).expanduser()
    if not source.exists():
        raise UsageError(f"{field}: there is no {source}")
    paths = sorted(one for one in source.rglob("*") if one.is_file()) if source.is_dir() else [source]
    return {field: sha256("".join(map(sha256_file, paths)).encode()).hexdigest()}
