"""Stage verdict: what an audit may be used for, by checks with a criterion each."""
