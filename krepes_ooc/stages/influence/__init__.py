"""Stage influence: scores of landmarks on audited samples, newton and audited -> influence."""
