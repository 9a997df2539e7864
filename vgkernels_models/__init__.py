"""Video models, and the data, scores and reports that serve them all, built on the ops of `vgkernels`.

Decides nothing at import; each model and each score is imported by its own name.
"""
