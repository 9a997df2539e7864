"""The loop that trains every model: steps, ranks, checkpoints, the run's folder, progress.

Decides how a run goes on, stops and is taken up again; what is learnt in a step is left to the models.
"""
