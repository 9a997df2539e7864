"""Video in: data sets of any layout, installed clips and generators as sources of clips; flow between frames.

Decides how pixels become batches; what is done with them is left to the models and the demos. `open_source` (in
`source`) opens what `--data` names, `Batches` (in `batches`) hands it to a training.
"""
