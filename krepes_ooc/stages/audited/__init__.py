"""Stage audited: rows of the audited samples, source and network -> audited."""
