<<<<<<< HEAD
"""Clients that train on what they keep, and a server that averages: the rounds, their rules and what moves the bytes."""
=======
"""Clients that train on rows of their own, and a server that puts together what they send.

Works as a plain library: needs torch and safetensors only.

    partition, sampling    which rows a client has; which clients take part in a round
    aggregate, lora        means of what clients send, whole tensors or low-rank factors
    wire                   tensors as bytes
    secure_aggregation     a sum whose parts the server does not see (a simulation)
"""
>>>>>>> fedmath
