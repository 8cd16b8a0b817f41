"""How a diffusion model is trained, as a part of a task's configuration."""

from __future__ import annotations

from dataclasses import dataclass

from privlm.schema import setting


@dataclass
class DenoisingConfig:
    """snr_gamma: of min-SNR weights (arXiv 2303.09556); null: all timesteps count alike.

    noise_offset: share of noise that is one number for each channel. caption_dropout: share of examples without their
    caption, which guidance needs. ema_decay: null: the weights of the last step are kept; else their average.
    gradient_checkpointing: less memory for more time.
    """

    snr_gamma: float | None = setting(above=0)
    noise_offset: float = setting(at_least=0)
    caption_dropout: float = setting(at_least=0, below=1)
    ema_decay: float | None = setting(above=0, below=1)
    gradient_checkpointing: bool = setting(same_cell=True)
