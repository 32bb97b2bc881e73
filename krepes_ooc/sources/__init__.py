"""Sources: samples of tables, arrays, image folders and map-style data sets, read by position.

In come a ``SourceSpec`` (recipe key ``source``), positions and files of new samples; out go raw
samples [sample, ...], labels, names, network inputs and the arrays that displays need. Converted
files and scan results are cached with checksums. ``tables``, ``pictures`` and ``arrays`` read a
kind of file each; what they share stands beside them. Nothing here imports torch or knows a stage.
``views``, ``jacobian``, ``engine``, ``stages`` and above may import it; it imports ``core`` and
``errors``.
"""
