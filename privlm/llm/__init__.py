"""Talking to language models: one layer through which every call goes.

types: what is asked and answered. opening: from the configuration to a model. client: the LanguageModel that a runner
holds. record: the call record, which is cache, resume and bill in one. dispatch: a batch on its way. account, budget:
what calls cost, and where asking stops. local, endpoint, replay: weights in this process, a server, recorded answers.
program: programs around a model whose steps see only what they declare.
"""

from privlm.llm.account import Usage
from privlm.llm.budget import Budget, BudgetExhausted, Spent
from privlm.llm.client import Choice, LanguageModel
from privlm.llm.opening import llm_inputs, open_llm

__all__ = ["Budget", "BudgetExhausted", "Choice", "LanguageModel", "Spent", "Usage", "llm_inputs", "open_llm"]
