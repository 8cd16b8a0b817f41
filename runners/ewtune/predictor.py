"""A trained classifier of EW-Tune at work: `privlm predict|evaluate|export RUN`."""

from __future__ import annotations
