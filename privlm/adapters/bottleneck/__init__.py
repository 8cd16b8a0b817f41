"""Series and parallel bottleneck adapters as a method of peft: Houlsby et al., arXiv 1902.00751, Pfeiffer et al., arXiv
2005.00052, He et al., arXiv 2110.04366, as LLM-Adapters (Hu et al., EMNLP 2023, arXiv 2304.01933) puts them into large
language models.

Importing this package registers the method; all else is peft's own:

    from privlm.adapters.bottleneck import BottleneckConfig

    model = get_peft_model(base, BottleneckConfig(placement="adapter_h"))
    ...
    model.save_pretrained("adapter")
    model = PeftModel.from_pretrained(base, "adapter")      # in another process: import this package first

A checkpoint can be read by whoever has imported this package; `load` imports it on the way and says what is wrong with
a folder that is none.
"""

from privlm.adapters.bottleneck.config import BottleneckConfig, BottleneckError, MergeError, activations
from privlm.adapters.bottleneck.layer import BottleneckLayer
from privlm.adapters.bottleneck.loading import load
from privlm.adapters.bottleneck.model import BottleneckModel
from privlm.adapters.bottleneck.registration import PEFT_TYPE, register

__all__ = [
    "PEFT_TYPE",
    "BottleneckConfig",
    "BottleneckError",
    "BottleneckLayer",
    "BottleneckModel",
    "MergeError",
    "activations",
    "load",
]

register(BottleneckConfig, BottleneckModel)
