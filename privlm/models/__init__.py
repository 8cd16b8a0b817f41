"""Models: files at hand (`locate`), what config.json tells (`architecture`, `shapes`), builders by family (`encoder`,
`causal`, `scratch`), and what a run trains and keeps (`loaded`, `saving`).

The first three need no torch.
"""
