"""Panels of the report page: each turns audit data into one section of HTML."""
