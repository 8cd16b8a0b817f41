"""Opens a pipeline of diffusers part by part, from local files alone, and says what it is made for."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from privlm.diffusion import text_keys
from privlm.diffusion.latent_scale import LatentScale
from privlm.diffusion.locate import PipelineFiles, complete, locate_pipeline
from privlm.diffusion.pipeline_folder import OWN_LIBRARY, parts_of, read_index, require_complete, weight_files
from privlm.errors import UsageError
from privlm.models.loading import NO_CODE, NO_PICKLE, quiet, readable, require_fit, require_vocabulary

logger = logging.getLogger("privlm")

NO_SAFETY_CHECKER = "the model has no safety checker: nothing looks at what it draws"


@dataclass(frozen=True)
class OpenedPipeline:
    """The parts of a text-to-image pipeline in evaluation mode, on the CPU; nothing trains yet.

    family: sd1, sd2 or sdxl. digest: 64 hexadecimal digits of the content.
    scheduler: the noise of training (DDPMScheduler); sampler: what images are drawn with, as the folder has it.
    tokenizer_2, text_encoder_2: of SDXL. safety_checker, feature_extractor: None where the folder has none.
    max_length: tokens of a caption, the special ones included. vae_factor: pixels of a side for one of the latents.
    notes: for a runner to tell.
    """

    directory: Path
    family: str
    digest: str
    tokenizer: Any
    text_encoder: Any
    unet: Any
    vae: Any
    scheduler: Any
    sampler: Any
    tokenizer_2: Any = None
    text_encoder_2: Any = None
    safety_checker: Any = None
    feature_extractor: Any = None
    notes: tuple[str, ...] = ()

    @property
    def prediction_type(self) -> str:
        return self.scheduler.config.prediction_type

    @property
    def scale(self) -> LatentScale:
        return LatentScale.of(self.vae)

    @property
    def latent_channels(self) -> int:
        return self.unet.config.in_channels

    @property
    def vae_factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_size(self) -> int:
        """Pixels of a side that the UNet was made for."""
        return self.unet.config.sample_size * self.vae_factor

    @property
    def max_length(self) -> int:
        positions = self.text_encoder.config.max_position_embeddings
        return min(self.tokenizer.model_max_length, positions)

    @property
    def state_size(self) -> int:
        """Width of the text states that cross attention reads."""
        return self.unet.config.cross_attention_dim

    def pipe(self, *, unet: Any = None, text_encoder: Any = None, scheduler: Any = None) -> Any:
        """The stock pipeline of diffusers with these parts in place of its own, on the device of its UNet."""
        parts = {
            "vae": self.vae,
            "text_encoder": text_encoder or self.text_encoder,
            "tokenizer": self.tokenizer,
            "unet": unet or self.unet,
            "scheduler": scheduler or type(self.sampler).from_config(self.sampler.config),
        }
        made = self._stock(parts)
        made.set_progress_bar_config(disable=True)
        return made.to(next(parts["unet"].parameters()).device)

    def _stock(self, parts: dict[str, Any]) -> Any:
        import diffusers

        if self.family == "sdxl":
            second = {"text_encoder_2": self.text_encoder_2, "tokenizer_2": self.tokenizer_2}
            return diffusers.StableDiffusionXLPipeline(**parts, **second, add_watermarker=False)
        safety = {"safety_checker": self.safety_checker, "feature_extractor": self.feature_extractor}
        has_checker = self.safety_checker is not None
        return diffusers.StableDiffusionPipeline(**parts, **safety, requires_safety_checker=has_checker)


def open_pipeline(config: Any) -> OpenedPipeline:
    """Loads a PipelineConfig's pipeline; a hub's is downloaded where that is possible. torch's global generator is not
    moved.

    Raises UsageError as `locate_pipeline`, and for weights that do not fit their settings, a tokenizer with tokens that
    are not embedded, and parts that do not fit each other.
    """
    found = locate_pipeline(config)
    complete(found, config)
    family = require_complete(found.directory, config.family, config.variant, allow_pickle=config.allow_pickle)
    with quiet(), _quiet_diffusers(), torch.random.fork_rng(devices=[]):
        parts = {part: _load(part, found, config) for part in parts_of(found.directory)}
    parts["sampler"] = parts.pop("scheduler")
    parts["scheduler"] = _training_noise(parts["sampler"])
    notes = () if parts.get("safety_checker") is not None else (NO_SAFETY_CHECKER,)
    opened = OpenedPipeline(found.directory, family, found.digest, notes=notes, **parts)
    _require_parts_that_fit(opened)
    for note in notes:
        logger.info(note)
    return opened


def _load(part: str, found: PipelineFiles, config: Any) -> Any:
    """One part, frozen and in evaluation mode where it has weights."""
    library, name = read_index(found.directory)[part]
    folder = found.directory / part
    variant = config.variant
    if part == "vae" and found.vae is not None:
        library, name, folder, variant = "diffusers", "AutoencoderKL", found.vae, None
    kind = _class_of(part, library, name, folder)
    with readable(folder):
        if part == "scheduler":
            return kind.from_config(kind.load_config(folder))
        if not issubclass(kind, nn.Module):
            return kind.from_pretrained(folder, **NO_CODE)
        dtype = torch.float32 if part == "vae" else getattr(torch, config.dtype)
        paths = weight_files(folder, variant, allow_pickle=config.allow_pickle)
        if part.startswith("text_encoder"):
            model, report = _text_encoder(kind, folder, paths, dtype)
        else:
            model, report = _from_pretrained(kind, folder, dtype, variant, pickled=paths[0].suffix == ".bin")
    require_fit(report, folder)
    return model.requires_grad_(False).eval()


def _text_encoder(kind: Any, folder: Path, paths: list[Path], dtype: torch.dtype) -> Any:
    """The model, and what did not fit of it. Whatever version of transformers has named the weights."""
    weights = {name: tensor for path in paths for name, tensor in _weights(path).items()}
    settings = kind.config_class.from_pretrained(folder, **NO_CODE)
    named = text_keys.fitted(weights, kind)
    options = {"state_dict": named, "dtype": dtype, "output_loading_info": True}
    return kind.from_pretrained(None, config=settings, **options, **NO_PICKLE)


def _weights(path: Path) -> dict[str, Tensor]:
    """Of one file; none of an index."""
    if path.suffix == ".bin":
        return torch.load(path, map_location="cpu", weights_only=True)
    return load_file(path) if path.suffix == ".safetensors" else {}


def _from_pretrained(kind: Any, folder: Path, dtype: torch.dtype, variant: str | None, *, pickled: bool) -> Any:
    """The same of the other parts."""
    import diffusers

    options: dict[str, Any] = {"variant": variant, "output_loading_info": True}
    if issubclass(kind, diffusers.ModelMixin):  # which knows no code of a folder, and reads of a pickle tensors alone
        options |= {"torch_dtype": dtype, "low_cpu_mem_usage": False}
        return kind.from_pretrained(folder, use_safetensors=not pickled, **options)
    return kind.from_pretrained(folder, dtype=dtype, use_safetensors=not pickled, **options, **NO_PICKLE)


def _class_of(part: str, library: str, name: str, folder: Path) -> Any:
    """By names that the folder was checked for; nothing of the folder's own is run."""
    import diffusers
    import transformers
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    if part == "safety_checker":
        return StableDiffusionSafetyChecker
    if part == "feature_extractor":
        return transformers.CLIPImageProcessor
    if part == "scheduler":
        kind = getattr(diffusers, name, None)
        if not (inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)):
            raise UsageError(f"{folder}: diffusers has no scheduler {name}; use another pipeline")
        return kind
    if library.startswith(OWN_LIBRARY):
        return getattr(importlib.import_module(library), name)
    if part.startswith("tokenizer"):
        return transformers.CLIPTokenizer
    return getattr(transformers if part.startswith("text_encoder") else diffusers, name)


def _training_noise(sampler: Any) -> Any:
    """The process of a sampler as training adds its noise."""
    from diffusers import DDPMScheduler

    with _quiet_diffusers():
        return DDPMScheduler.from_config(sampler.config)


def _require_parts_that_fit(opened: OpenedPipeline) -> None:
    where = opened.directory
    pairs = [(opened.text_encoder, opened.tokenizer, "text_encoder")]
    if opened.text_encoder_2 is not None:
        pairs.append((opened.text_encoder_2, opened.tokenizer_2, "text_encoder_2"))
    for encoder, tokenizer, name in pairs:
        require_vocabulary(encoder, tokenizer, where / name)
    given = sum(encoder.config.hidden_size for encoder, _, _ in pairs)
    if given != opened.state_size:
        raise UsageError(
            f"{where}: the UNet attends to text states of {opened.state_size} numbers (cross_attention_dim), and the "
            f"text encoder gives {given}; use the parts of one pipeline"
        )
    channels = opened.vae.config.latent_channels
    if opened.latent_channels != channels:
        raise UsageError(
            f"{where}: the UNet takes {opened.latent_channels} channels, and the VAE's latents have {channels}; use "
            "the parts of one pipeline, and none for inpainting"
        )


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Without progress bars and warnings; what matters in them raises here."""
    from diffusers.utils import logging as diffusers_logging

    verbosity = diffusers_logging.get_verbosity()
    bars = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
        if bars:
            diffusers_logging.enable_progress_bar()
