"""The trainer: ranked responses in, a better policy out, as a plain program without Django.

`python -m training.trainer init RUN_DIR ...` makes a run directory, `... run RUN_DIR` trains it.
"""
