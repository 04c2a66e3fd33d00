"""Check template.yaml against public rule sets (`make check-template`)."""
