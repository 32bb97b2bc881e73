"""What every other folder may use: blocks, settings, files, digests, keyed random draws, float16.

In come plain values, arrays and paths; out go plain values, arrays and files. Nothing here knows
a stage, a store or a network. Every folder of the package may import it; it imports only
``krepes_ooc.errors``. torch is imported in ``float16`` alone.
"""
