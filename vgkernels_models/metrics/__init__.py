"""Scores of generated or predicted video, one file a score.

Decides how each number is computed and under which protocol; printing it is left to the reports.
"""
