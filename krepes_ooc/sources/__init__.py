"""Sources: samples of tables, arrays, image folders and map-style data sets, read by position.

In come a ``SourceSpec`` (recipe key ``source``) and store rows; out go raw samples [sample, ...],
network inputs, and what people are shown of a sample. Nothing here imports torch or knows a stage.
``views``, ``network``, ``stages`` and above may import it.
"""
