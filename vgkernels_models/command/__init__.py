"""The command line: list, train, sample, evaluate.

Decides flags, what is printed, and exit codes; the work is left to training/, metrics/ and report/.
"""
