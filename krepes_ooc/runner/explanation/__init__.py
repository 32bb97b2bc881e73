"""Questions about single samples of a finished audit."""
