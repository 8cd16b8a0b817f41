"""Text-to-image: pipelines of diffusers, the denoising objective, rendered scenes and the judges of images."""
