"""Stage alignment: alignment gaps of columns and groups, influence -> alignment."""
