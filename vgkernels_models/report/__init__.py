"""Self-contained HTML reports: clips, curves and tables in one file that opens anywhere.

Decides how results look; which results are shown is left to the caller.
"""
