"""Stage randomised: model randomisation control, the audit of networks with permuted weights."""
