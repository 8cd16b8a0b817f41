"""A small real text-to-image pipeline of stock diffusers classes, trained here on rendered scenes."""
