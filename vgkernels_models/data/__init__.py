"""Video in: clips read from files and flow estimated between their frames.

Decides how pixels become tensors; what is done with them is left to the models and the demos.
"""
