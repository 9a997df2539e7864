"""The demo behind `make demo-warp`: `flow_warp` on a real clip, scored frame by frame, shown on one page.

Decides nothing itself: `measure.py` computes, `report.py` shows, `command.py` is the command line, which
`__main__.py` starts.
"""
