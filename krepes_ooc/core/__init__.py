"""Shared ground: block plans, settings, YAML, files, digests, random draws, arrays, float16.

In come plain values, arrays and paths; out go plain values, arrays, parsed declarations, and files
that are whole or absent. Of stages only the order of their names is known here, of stores and
networks nothing. Every folder of the
package may import it; it imports only ``krepes_ooc.errors``. YAML is parsed in ``resources`` alone;
torch is imported in ``float16`` alone, on first use.
"""
