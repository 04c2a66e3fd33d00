"""A person's rights over their rows: take them along, or have them erased."""
