"""Tables: CSV, Parquet and Arrow files, their encoding, and the scan of their columns."""
